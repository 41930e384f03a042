#include "engine/load_queues.hpp"

#include <algorithm>
#include <utility>

namespace lmkv {

LoadQueues::LoadQueues(const std::vector<Tier*>& tiers, std::size_t most_reading)
    : most_reading_(most_reading) {
  for (Tier* tier : tiers) queues_.push_back({tier, {}, 0});
}

LoadQueues::Queue& LoadQueues::of(const Tier& tier) {
  return *std::ranges::find(queues_, &tier, &Queue::tier);
}

bool LoadQueues::is_readable(const Queue& queue) const {
  return !queue.waiting.empty() && queue.reading < most_reading_;
}

LoadQueues::Queue* LoadQueues::next_readable() {
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    Queue& queue = queues_[(next_ + i) % queues_.size()];
    if (!is_readable(queue)) continue;
    next_ = (next_ + i + 1) % queues_.size();
    return &queue;
  }
  return nullptr;
}

bool LoadQueues::push(Tier& tier, const std::shared_ptr<ChunkLoad>& load) {
  const std::lock_guard lock(mutex_);
  // Under the lock, or whoever gives the job up in between would not find it.
  if (!load->job->ask(load->index, tier)) return false;
  of(tier).waiting.push(load->job->number(), load);
  return true;
}

bool LoadQueues::is_waiting() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(queues_, [this](const Queue& queue) { return is_readable(queue); });
}

std::optional<LoadQueues::Next> LoadQueues::pop(SlabPool& pool) {
  // In one piece: a slab that was taken and not used would be missed by whoever waits for it.
  const std::lock_guard lock(mutex_);
  Queue* const queue = next_readable();
  if (queue == nullptr) return std::nullopt;
  std::optional<Slab> slab = pool.try_acquire(queue->waiting.front()->identity.key);
  if (!slab) return std::nullopt;
  ++queue->reading;
  return Next{queue->waiting.pop(), std::move(*slab)};
}

void LoadQueues::ended(const Tier& tier) {
  const std::lock_guard lock(mutex_);
  --of(tier).reading;
}

std::vector<std::shared_ptr<ChunkLoad>> LoadQueues::clear(const Tier& tier) {
  const std::lock_guard lock(mutex_);
  return of(tier).waiting.clear();
}

std::vector<std::shared_ptr<ChunkLoad>> LoadQueues::remove(const LoadJob& job,
                                                           const std::set<Tier*>& tiers) {
  std::vector<std::shared_ptr<ChunkLoad>> removed;
  const std::lock_guard lock(mutex_);
  for (const Tier* tier : tiers) {
    for (std::shared_ptr<ChunkLoad>& load : of(*tier).waiting.remove(job.number())) {
      removed.push_back(std::move(load));
    }
  }
  return removed;
}

}  // namespace lmkv
