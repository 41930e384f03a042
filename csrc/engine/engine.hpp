// One rank's engine: paged KV blocks to files and back.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_context.hpp"
#include "engine/engine_options.hpp"
#include "engine/jobs.hpp"
#include "engine/load_pipeline.hpp"
#include "engine/root_trials.hpp"
#include "engine/store_pipeline.hpp"
#include "engine/tier_copies.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {

// All but info() from one thread at a time, and never blocking on disk or device but where it says
// so. Jobs advance on the device's and the I/O engines' threads.
class Engine {
 public:
  Engine(const EngineOptions& options, EngineParts parts);
  // Closes it, however long that takes.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Both throw std::invalid_argument, with nothing begun, for ids or counts that are out of range.
  // A store is empty when no slab is free, loads wait for one, the chunk's root is full or out of
  // service, the engine is closed or its device lost: it is dropped and counted. A load of a closed
  // engine, of a root out of service or on a lost device fails. `used_at`: when the request began,
  // the same for all its chunks (store/use_stamp.hpp).
  std::optional<JobId> store(const ChunkKey& key, std::uint64_t token_begin,
                             std::vector<BlockId> blocks, std::uintptr_t stream,
                             UseTime used_at = std::chrono::system_clock::now());
  JobId load(std::vector<LoadChunk> chunks, std::uintptr_t stream,
             UseTime used_at = std::chrono::system_clock::now());
  // Gives up what is left of a load that nobody waits for any more. It completes all the same, with
  // the chunks that were not loaded, and from then on none of its blocks is written to.
  void cancel(JobId load);
  // Chunks that were used without us: those behind them are used less. Not a job.
  void touch(const std::vector<UsedChunk>& chunks,
             UseTime used_at = std::chrono::system_clock::now());
  // Also gives up the loads whose time is over (EngineOptions::load_timeout): they are among what
  // is returned now or by a later call. And tries roots that are out of service.
  std::vector<Completion> poll();

  [[nodiscard]] std::map<std::string, std::uint64_t> stats() const;
  [[nodiscard]] std::map<std::string, std::string> info() const;
  // Indices of the roots that are not worth a lookup: what is in them cannot be loaded. The remote
  // tier, if there is to be one, counts as a root behind the last, here and in info() and stats().
  [[nodiscard]] std::vector<std::size_t> roots_out_of_service() const;

  // Where the orders for a remote engine are, if there is one that is no directory; else nullptr.
  // For other threads, until close() has returned true.
  [[nodiscard]] RemoteTier* remote() { return context_.remote_orders; }
  // All slabs: where those orders' buffers lie.
  [[nodiscard]] SlabMemory memory() const { return context_.pool->memory(); }

  // Keys of chunks of this namespace, of whatever rank, that this engine has evicted since the last
  // call.
  [[nodiscard]] std::vector<ChunkKey> take_evicted();

  // True when no job is in flight any more; false after `timeout`.
  [[nodiscard]] bool drain(std::chrono::duration<double> timeout);
  // Drops what is queued, waits for what is on its way, ends the device's thread. Idempotent.
  // Memory and I/O threads live as long as the engine. False when a disk has not answered in time:
  // the kernel may still write to the slabs, so the engine must stay.
  [[nodiscard]] bool close(std::chrono::duration<double> timeout);

 private:
  void add_remote_stats(std::map<std::string, std::uint64_t>& all) const;
  void add_remote_info(std::map<std::string, std::string>& all) const;

  EngineContext context_;
  TierCopies copies_;
  LoadPipeline loads_;
  StorePipeline stores_;
  RootTrials trials_;
  bool stopped_ = false;
};

}  // namespace lmkv
