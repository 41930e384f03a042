#include "engine/remote_tier.hpp"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace lmkv {
namespace {

constexpr std::chrono::hours kLongestWait{24};

}  // namespace

RemoteTier::RemoteTier(std::string name, std::size_t load_depth, std::size_t store_depth)
    : name_(std::move(name)), load_depth_(load_depth), store_depth_(store_depth) {}

std::string RemoteTier::name_of(const ChunkKey& key) const { return name_ + " " + key.hex(); }

// ---- The pipelines' side

void RemoteTier::read(Read request) {
  auto task = std::make_unique<Task>();
  task->order = {0, RemoteOrderKind::kGet, request.key, request.buffer, request.bytes};
  task->group = request.group;
  task->done = [done = std::move(request.done)](const Status& status, WriteOutcome) {
    done(status);
  };
  enqueue(std::move(task));
}

void RemoteTier::write(Write request) {
  auto task = std::make_unique<Task>();
  // A put reads the buffer only.
  task->order = {0, RemoteOrderKind::kPut, request.key, const_cast<std::byte*>(request.buffer),
                 request.bytes};
  task->done = std::move(request.done);
  enqueue(std::move(task));
}

void RemoteTier::remove(const ChunkKey& key, std::function<void(Status)> done) {
  auto task = std::make_unique<Task>();
  task->order = {0, RemoteOrderKind::kRemove, key, nullptr, 0};
  task->done = [done = std::move(done)](const Status& status, WriteOutcome) { done(status); };
  enqueue(std::move(task));
}

void RemoteTier::enqueue(TaskPointer task) {
  {
    const std::lock_guard lock(mutex_);
    if (!shut_down_) {
      if (task->lane() == RemoteLane::kLoads) {
        const std::uint64_t group = task->group;
        loads_queued_.push(group, std::move(task));
      } else if (task->order.kind == RemoteOrderKind::kRemove) {
        stores_queued_.push_front(std::move(task));  // a load waits for it
      } else {
        stores_queued_.push_back(std::move(task));
      }
    }
  }
  if (task != nullptr) return task->done(Status::cancelled(), WriteOutcome::kFailed);
  changed_.notify_all();
}

void RemoteTier::cancel(std::uint64_t group) {
  std::vector<TaskPointer> cancelled;
  {
    const std::lock_guard lock(mutex_);
    cancelled = loads_queued_.remove(group);
  }
  end_all(cancelled, Status::cancelled());
}

void RemoteTier::refuse_reads(const Status& status) {
  std::vector<TaskPointer> refused;
  {
    const std::lock_guard lock(mutex_);
    refused = loads_queued_.clear();
  }
  end_all(refused, status);
}

void RemoteTier::end_all(const std::vector<TaskPointer>& tasks, const Status& status) {
  for (const TaskPointer& task : tasks) task->done(status, WriteOutcome::kFailed);
}

std::size_t RemoteTier::reads() const {
  const std::lock_guard lock(mutex_);
  return loads_queued_.size() +
         static_cast<std::size_t>(std::ranges::count_if(under_way_, [](const auto& each) {
           return each.second->lane() == RemoteLane::kLoads;
         }));
}

bool RemoteTier::is_reading() const {
  const std::lock_guard lock(mutex_);
  return load_bytes_ > 0;
}

void RemoteTier::begin_shutdown() {
  std::vector<TaskPointer> queued;
  {
    const std::lock_guard lock(mutex_);
    shut_down_ = true;
    queued = loads_queued_.clear();
    std::ranges::move(stores_queued_, std::back_inserter(queued));
    stores_queued_.clear();
  }
  changed_.notify_all();
  end_all(queued, Status::cancelled());
}

bool RemoteTier::wait_idle(Seconds timeout) {
  const Seconds longest = kLongestWait;  // infinity overflows the clock
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::min(timeout, longest),
                           [this] { return under_way_.empty() && calling_back_ == 0; });
}

bool RemoteTier::is_shut_down() const {
  const std::lock_guard lock(mutex_);
  return shut_down_;
}

// ---- The carriers' side

bool RemoteTier::has_admissible(RemoteLane lane) const {
  if (lane == RemoteLane::kLoads) {
    return !loads_queued_.empty() && (load_bytes_ == 0 || load_bytes_ < load_depth_);
  }
  if (stores_queued_.empty()) return false;
  if (store_bytes_ == 0) return true;
  // While somebody waits for loads, one store at a time.
  return loads_queued_.empty() && store_bytes_ < store_depth_;
}

std::vector<RemoteOrder> RemoteTier::take(RemoteLane lane, std::size_t most_bytes,
                                          Seconds timeout) {
  std::vector<RemoteOrder> orders;
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::min<Seconds>(timeout, kLongestWait),
                    [&] { return shut_down_ || has_admissible(lane); });
  std::size_t bytes = 0;
  while (!shut_down_ && has_admissible(lane) && (orders.empty() || bytes < most_bytes)) {
    TaskPointer task;
    if (lane == RemoteLane::kLoads) {
      task = loads_queued_.pop();
    } else {
      task = std::move(stores_queued_.front());
      stores_queued_.pop_front();
    }
    RemoteOrder& order = task->order;
    order.ticket = next_ticket_++;
    bytes += order.bytes;
    (lane == RemoteLane::kLoads ? load_bytes_ : store_bytes_) += order.bytes;
    orders.push_back(order);
    under_way_.emplace(order.ticket, std::move(task));
  }
  return orders;
}

void RemoteTier::finish(std::uint64_t ticket, RemoteResult result, const std::string& message) {
  TaskPointer task;
  {
    const std::lock_guard lock(mutex_);
    const auto found = under_way_.find(ticket);
    if (found == under_way_.end()) throw std::invalid_argument("no such order is under way");
    task = std::move(found->second);
    under_way_.erase(found);
    (task->lane() == RemoteLane::kLoads ? load_bytes_ : store_bytes_) -= task->order.bytes;
    ++calling_back_;
  }
  changed_.notify_all();
  const std::string name = name_of(task->order.key);
  switch (result) {
    case RemoteResult::kDone: task->done(Status::ok(), WriteOutcome::kWritten); break;
    case RemoteResult::kThere: task->done(Status::ok(), WriteOutcome::kAlreadyThere); break;
    case RemoteResult::kMissing: task->done(Status::missing(name), WriteOutcome::kFailed); break;
    case RemoteResult::kBad:
      task->done(Status::bad_chunk(name, message), WriteOutcome::kFailed);
      break;
    case RemoteResult::kFailed:
      task->done(Status::remote(message, name), WriteOutcome::kFailed);
      break;
    case RemoteResult::kUnsettled:
      task->done(Status::unsettled(message, name), WriteOutcome::kFailed);
      break;
  }
  task.reset();
  {
    const std::lock_guard lock(mutex_);
    --calling_back_;
    changed_.notify_all();
  }
}

void RemoteTier::add_stats(std::map<std::string, std::uint64_t>& all) const {
  const std::lock_guard lock(mutex_);
  all["remote_load_bytes_in_flight"] = load_bytes_;
  all["remote_store_bytes_in_flight"] = store_bytes_;
}

}  // namespace lmkv
