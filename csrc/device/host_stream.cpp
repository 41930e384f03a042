#include "device/host_stream.hpp"

#include <future>
#include <set>
#include <utility>

namespace lmkv {

void HostEvent::then(std::function<void()> action) const {
  {
    const std::lock_guard lock(mutex_);
    if (!reached_) {
      actions_.push_back(std::move(action));
      return;
    }
  }
  action();
}

void HostEvent::reach() {
  std::vector<std::function<void()>> actions;
  {
    const std::lock_guard lock(mutex_);
    reached_ = true;
    actions.swap(actions_);
  }
  for (const std::function<void()>& action : actions) action();
}

namespace {

// Those that exist: a handle comes from outside, and is looked up rather than believed.
struct Streams {
  std::mutex mutex;
  std::set<std::uintptr_t> handles;
};

Streams& streams() {
  static Streams all;
  return all;
}

}  // namespace

HostStream::HostStream() : thread_([this] { run(); }) {
  const std::lock_guard lock(streams().mutex);
  streams().handles.insert(handle());
}

std::shared_ptr<const HostEvent> HostStream::record(std::uintptr_t handle) {
  const std::lock_guard lock(streams().mutex);
  if (!streams().handles.contains(handle)) return nullptr;
  return reinterpret_cast<HostStream*>(handle)->record();
}

HostStream::~HostStream() {
  {
    const std::lock_guard lock(streams().mutex);
    streams().handles.erase(handle());
  }
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void HostStream::enqueue(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
}

std::shared_ptr<const HostEvent> HostStream::record() {
  auto event = std::make_shared<HostEvent>();
  enqueue([event] { event->reach(); });
  return event;
}

void HostStream::synchronize() {
  std::promise<void> reached;
  enqueue([&reached] { reached.set_value(); });
  reached.get_future().wait();
}

void HostStream::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    lock.lock();
  }
}

}  // namespace lmkv
