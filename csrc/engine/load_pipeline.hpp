// Loads: read -> verify -> scatter.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

#include "engine/engine_context.hpp"
#include "engine/load_job.hpp"
#include "engine/load_patience.hpp"
#include "engine/load_queues.hpp"
#include "engine/tier_copies.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {

// A chunk of a load waits for a slab, is read and verified there, and is scattered. What its
// directory does not have, or not whole, is asked of the remote tier, if there is one. Until a
// chunk is handed to the device it can be given up: its job goes on without it, and what a tier
// still delivers reaches a slab and no block.
class LoadPipeline {
 public:
  using Clock = LoadJob::Clock;

  LoadPipeline(EngineContext& context, TierCopies& copies);

  // Engine's thread, as the next two.
  JobId begin(std::vector<LoadChunk> chunks, std::uintptr_t stream, UseTime used_at);
  // Gives up what is left of a job. Its completion follows, at the latest when what the device has
  // of it is done. Nothing for a job that has ended.
  void cancel(JobId job);
  // Gives up the jobs whose time is over.
  void give_up_late(Clock::time_point now = Clock::now());

  // Starts what was waiting for another load, or another engine, to bring it: that has come, or
  // takes too long.
  void start_arrived(Clock::time_point now = Clock::now());

  // Any thread: whether chunks wait for a slab, and for nothing else.
  [[nodiscard]] bool is_waiting() const;
  // Any thread: a slab may have come free.
  void start_waiting();
  // Gives up everything; nothing may begin after it.
  void close();

 private:
  std::vector<std::shared_ptr<ChunkLoad>> make_loads(std::vector<LoadChunk> chunks,
                                                     const std::shared_ptr<LoadJob>& job) const;
  void start(std::shared_ptr<ChunkLoad> load);
  void start_found(std::shared_ptr<ChunkLoad> load, SharedSlab chunk);
  void start_reading(std::shared_ptr<ChunkLoad> load);
  void queue(std::shared_ptr<ChunkLoad> load, Tier& tier);
  // What it has of a chunk is damaged: then it is gone, or looked at once more.
  void refuse_bad(std::shared_ptr<ChunkLoad> load, const Status& status);
  // Where its directory has failed it; `why` is what becomes of it where there is no other tier.
  void try_remote(std::shared_ptr<ChunkLoad> load, const Status& why);
  void read(std::shared_ptr<ChunkLoad> load, Slab slab);
  void verify(std::shared_ptr<ChunkLoad> load, const Status& read_status);
  void note_health(const ChunkLoad& load, const Status& status);
  // A chunk that was used is wanted in the other tier, too: it may never have come there.
  void spread(const ChunkLoad& load);
  void scatter(std::shared_ptr<ChunkLoad> load);
  void end(const std::shared_ptr<ChunkLoad>& load, const Status& status);
  void count_failed(const Status& status);
  void finish(LoadJob& job);

  // Returns the tiers that it was waiting for.
  std::set<Tier*> give_up(const std::shared_ptr<LoadJob>& job, const Status& status);
  void refuse_waiting(Tier& tier);
  // Whoever gave up a job may do so long before a disk counts as hanging: that is found out later.
  void watch(Tier& tier, const LoadJob& job);
  void look_at_watched(Clock::time_point now);
  void take_out_if_stalled(Tier& tier, Clock::time_point since, Clock::time_point now);
  std::vector<std::shared_ptr<LoadJob>> take_late(Clock::time_point now);

  EngineContext& context_;
  TierCopies& copies_;
  LoadPatience patience_;
  LoadQueues queues_;
  std::atomic<std::uint64_t> bytes_left_{0};  // to be read, of all jobs under way

  mutable std::mutex mutex_;  // of all below; never held across I/O or callbacks
  std::unordered_map<std::uint64_t, std::shared_ptr<LoadJob>> jobs_;
  Clock::time_point next_deadline_ = Clock::time_point::max();
  // What is on its way to memory by another's hand, and until when that is waited for.
  struct Awaited {
    std::shared_ptr<ChunkLoad> load;
    Clock::time_point until;
  };
  std::vector<Awaited> awaited_;
  // A tier that was reading for a job that was cancelled. One for each tier at most.
  struct Watch {
    Tier* tier;
    Clock::time_point begun;
    Clock::time_point deadline;
  };
  std::vector<Watch> watches_;
};

}  // namespace lmkv
