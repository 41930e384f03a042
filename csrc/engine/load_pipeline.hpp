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

#include "common/fair_queue.hpp"
#include "engine/engine_context.hpp"
#include "engine/load_patience.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {

// A chunk of a load waits for a slab, is read and verified there, and is scattered. Until it is
// handed to the device it can be given up: its job goes on without it, and what the disk still
// delivers reaches a slab and no block.
class LoadPipeline {
 public:
  using Clock = std::chrono::steady_clock;

  explicit LoadPipeline(EngineContext& context);

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
  enum class Stage : std::uint8_t { kWaiting, kScattering, kEnded };
  struct Job;
  struct ChunkLoad;
  struct RootQueue;

  std::vector<std::shared_ptr<ChunkLoad>> make_loads(std::vector<LoadChunk> chunks,
                                                     const std::shared_ptr<Job>& job) const;
  void start(std::shared_ptr<ChunkLoad> load);
  void start_found(std::shared_ptr<ChunkLoad> load, SharedSlab chunk);
  void start_reading(std::shared_ptr<ChunkLoad> load);
  void read(std::shared_ptr<ChunkLoad> load, Slab slab);
  void verify(std::shared_ptr<ChunkLoad> load, const Status& read_status);
  void note_health(const ChunkLoad& load, const Status& status);
  void scatter(std::shared_ptr<ChunkLoad> load);
  void end(const std::shared_ptr<ChunkLoad>& load, const Status& status);
  void count_failed(const Status& status);
  void finish(Job& job);

  // Returns the roots that it was waiting for.
  std::set<Root*> give_up(const std::shared_ptr<Job>& job, const Status& status);
  void refuse_waiting(Root& root);
  // Whoever gave up a job may do so long before a disk counts as hanging: that is found out later.
  void watch(Root& root, const Job& job);
  void look_at_watched(Clock::time_point now);
  void take_out_if_stalled(Root& root, Clock::time_point since, Clock::time_point now);
  // Caller holds mutex_.
  [[nodiscard]] RootQueue& queue_of(const Root& root);
  [[nodiscard]] bool is_readable(const RootQueue& queue) const;
  [[nodiscard]] RootQueue* next_readable();
  std::vector<std::shared_ptr<Job>> take_late(Clock::time_point now);

  EngineContext& context_;
  LoadPatience patience_;
  const std::size_t most_reading_;  // chunks of one root: a disk that hangs has not all the slabs
  std::atomic<std::uint64_t> bytes_left_{0};  // to be read, of all jobs under way

  // Of all below; never held across I/O or callbacks. The pool's lock is inside it.
  mutable std::mutex mutex_;
  // Of one root: what waits for a slab, by job, and how many are being read.
  struct RootQueue {
    Root* root;
    FairQueue<std::shared_ptr<ChunkLoad>> waiting;
    std::size_t reading = 0;
  };
  std::vector<RootQueue> queues_;
  std::size_t next_queue_ = 0;  // whose turn it is
  std::unordered_map<std::uint64_t, std::shared_ptr<Job>> jobs_;
  Clock::time_point next_deadline_ = Clock::time_point::max();
  // What is on its way to memory by another's hand, and until when that is waited for.
  struct Awaited {
    std::shared_ptr<ChunkLoad> load;
    Clock::time_point until;
  };
  std::vector<Awaited> awaited_;
  // A root that was reading for a job that was cancelled. One for each root at most.
  struct Watch {
    Root* root;
    Clock::time_point begun;
    Clock::time_point deadline;
  };
  std::vector<Watch> watches_;
};

}  // namespace lmkv
