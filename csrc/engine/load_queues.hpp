// Chunks that wait for a slab to be read into.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "common/fair_queue.hpp"
#include "engine/load_job.hpp"
#include "engine/slab_pool.hpp"
#include "engine/tier.hpp"

namespace lmkv {

// One queue for each tier, in which jobs take turns as the tiers do; of one tier only so many are
// read at a time: one that hangs has not all the slabs. Thread-safe.
class LoadQueues {
 public:
  LoadQueues(const std::vector<Tier*>& tiers, std::size_t most_reading);

  // False for a chunk that was given up: it does not wait.
  [[nodiscard]] bool push(Tier& tier, const std::shared_ptr<ChunkLoad>& load);
  // Whether chunks wait for a slab, and for nothing else.
  [[nodiscard]] bool is_waiting() const;

  struct Next {
    std::shared_ptr<ChunkLoad> load;
    Slab slab;
  };
  // Whose turn it is, with a slab for it; until ended() it is being read.
  [[nodiscard]] std::optional<Next> pop(SlabPool& pool);
  void ended(const Tier& tier);

  // These wait no longer.
  [[nodiscard]] std::vector<std::shared_ptr<ChunkLoad>> clear(const Tier& tier);
  [[nodiscard]] std::vector<std::shared_ptr<ChunkLoad>> remove(const LoadJob& job,
                                                               const std::set<Tier*>& tiers);

 private:
  struct Queue {
    Tier* tier;
    FairQueue<std::shared_ptr<ChunkLoad>> waiting;
    std::size_t reading = 0;
  };

  // Caller holds mutex_.
  [[nodiscard]] Queue& of(const Tier& tier);
  [[nodiscard]] bool is_readable(const Queue& queue) const;
  [[nodiscard]] Queue* next_readable();

  const std::size_t most_reading_;
  mutable std::mutex mutex_;  // of all below; a job's lock and the pool's are inside it
  std::vector<Queue> queues_;
  std::size_t next_ = 0;  // whose turn it is
};

}  // namespace lmkv
