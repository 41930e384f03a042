// The two pipelines: gather -> seal -> write, and read -> verify -> scatter.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/busy_time.hpp"
#include "common/status.hpp"
#include "common/types.hpp"
#include "device/device.hpp"
#include "engine/slab_pool.hpp"
#include "engine/stats.hpp"
#include "io/direct_file.hpp"
#include "io/io_engine.hpp"
#include "io/root_probe.hpp"
#include "store/chunk_format.hpp"
#include "store/directory.hpp"
#include "store/housekeeper.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {

struct EngineOptions {
  std::string root;
  NamespaceDigest namespace_digest;
  std::uint32_t rank = 0;
  std::vector<Segment> segments;
  std::size_t block_count = 0;  // of the paged KV cache: ids are below it
  std::uint32_t block_tokens = 0;
  std::uint32_t blocks_per_chunk = 0;
  std::size_t host_memory = 0;  // bytes for slabs
  std::string device = "host";
  TransferOptions transfer;
  IoEngineChoice io_engine = IoEngineChoice::kAuto;
  DirectIoChoice direct_io = DirectIoChoice::kAuto;
  unsigned io_threads = 1;
  std::size_t request_bytes = 1 << 20;
  std::size_t load_depth = 64 << 20;
  std::size_t store_depth = 32 << 20;
  std::uint64_t capacity = 0;     // bytes below the root, everybody's; 0: no limit
  double free_space_floor = 5.0;  // percent of the filesystem that stays free
  HousekeepingOptions housekeeping;
};

// Size of a slab: header page and a whole chunk's payload.
std::size_t slab_bytes_of(const EngineOptions& options);

// What runs under the pipelines. `make_parts` makes the real ones; tests put faults in between.
struct EngineParts {
  std::unique_ptr<Device> device;
  std::unique_ptr<IoEngine> io_engine;
  RootProbe root;
  std::string io_engine_reason;
};
// Throws std::invalid_argument for options that cannot work, before anything is started or made;
// std::runtime_error for a machine or a directory that does not let them. Blocks on the disk.
EngineParts make_parts(const EngineOptions& options);

struct LoadChunk {
  ChunkKey key;
  std::uint64_t token_begin = 0;
  std::uint32_t block_count = 0;  // blocks in the file
  std::uint32_t first_block = 0;  // the first that is wanted
  std::vector<BlockId> blocks;    // where it and those behind it go
};

struct UsedChunk {
  ChunkKey key;
  std::uint64_t token_begin = 0;
};

enum class CompletionKind { kGathered, kStored, kLoaded };

struct Completion {
  CompletionKind kind{};
  JobId job{};
  std::vector<std::size_t> failed_chunks;  // kLoaded: indices into the job's chunks
  std::string error;                       // empty on success; the first one for kLoaded
};

// store, load, poll, stats: from one thread at a time, and never blocking on disk or device.
// Jobs advance on the device's and the I/O engine's threads.
class Engine {
 public:
  Engine(const EngineOptions& options, EngineParts parts);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Both throw std::invalid_argument, with nothing begun, for ids or counts that are out of range.
  // A store is empty when no slab is free, loads wait for one, the directory is full, the engine is
  // closed or its device lost: it is dropped and counted. A load of a closed engine, or on a lost
  // device, fails. `used_at`: when the request began, the same for all its chunks
  // (store/use_stamp.hpp).
  std::optional<JobId> store(const ChunkKey& key, std::uint64_t token_begin,
                             std::vector<BlockId> blocks, std::uintptr_t stream,
                             UseTime used_at = std::chrono::system_clock::now());
  JobId load(std::vector<LoadChunk> chunks, std::uintptr_t stream,
             UseTime used_at = std::chrono::system_clock::now());
  // Chunks that were used without us: those behind them are used less. Not a job.
  void touch(const std::vector<UsedChunk>& chunks,
             UseTime used_at = std::chrono::system_clock::now());
  std::vector<Completion> poll();

  [[nodiscard]] std::map<std::string, std::uint64_t> stats() const;
  [[nodiscard]] std::map<std::string, std::string> info() const;

  // True when no job is in flight any more; false after `timeout`.
  bool drain(std::chrono::duration<double> timeout);
  // Drops what is queued, waits for what is on its way, ends the device's thread. Idempotent; the
  // destructor does it too. Memory and I/O threads live as long as the engine.
  void close();

 private:
  struct StoreJob;
  struct LoadJob;
  struct ChunkLoad;  // one chunk of a load job, on its way

  [[nodiscard]] ChunkIdentity identity(const ChunkKey& key, std::uint64_t token_begin,
                                       std::size_t blocks) const;
  void check_blocks(const std::vector<BlockId>& blocks) const;

  [[nodiscard]] std::optional<SharedSlab> find_in_memory(const ChunkIdentity& identity);

  void gathered(std::shared_ptr<StoreJob> job, Status status);
  void write(std::shared_ptr<StoreJob> job);
  void stored(const std::shared_ptr<StoreJob>& job, const Status& status,
              FileWrite::Outcome outcome);

  void settle_space(const StoreJob& job, const Status& status, FileWrite::Outcome outcome);

  void start_load(std::shared_ptr<ChunkLoad> load);
  void read(std::shared_ptr<ChunkLoad> load, Slab slab);
  void verify(std::shared_ptr<ChunkLoad> load, const Status& status);
  void scatter(std::shared_ptr<ChunkLoad> load);
  void loaded(const std::shared_ptr<ChunkLoad>& load, const Status& status);
  void start_waiting_loads();

  JobId begin_job();
  void complete(Completion completion);
  void end_job(Completion completion);

  const EngineOptions options_;
  const SegmentTable table_;
  const ChunkPaths paths_;
  const std::string root_reason_;
  const std::string filesystem_;
  const std::string io_engine_reason_;
  Stats stats_;
  BusyTime reading_;  // chunk files, from the call to the last byte
  BusyTime writing_;

  // Of all up to the blank line; never held across I/O or callbacks. The pool's lock is inside it.
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  std::uint64_t next_job_ = 1;
  std::size_t jobs_in_flight_ = 0;
  bool closed_ = false;
  std::vector<Completion> completions_;
  std::deque<std::shared_ptr<ChunkLoad>> waiting_loads_;  // for a slab, first come first served

  // Before files_, whose callbacks use it.
  std::unique_ptr<Housekeeper> housekeeper_;

  // close() has ended every job and the device's callbacks before any of these goes.
  std::unique_ptr<Device> device_;
  std::unique_ptr<SlabPool> pool_;
  std::unique_ptr<IoEngine> io_engine_;
  std::unique_ptr<FileIo> files_;
};

}  // namespace lmkv
