#include "engine/engine.hpp"

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <utility>

namespace lmkv {

struct Engine::StoreJob {
  JobId id{};
  ChunkIdentity identity;
  std::int64_t used_ns = 0;
  bool reserved = false;             // in the ledger of space
  std::optional<Slab> filling;       // until it is sealed
  std::optional<SharedSlab> sealed;  // from then on
};

struct Engine::LoadJob {
  JobId id{};
  std::shared_ptr<const Fence> after;
  UseTime used_at;
  std::mutex mutex;
  std::size_t chunks_left = 0;             // guarded by mutex, as the two below
  std::vector<std::size_t> failed_chunks;  // ascending once the job is complete
  std::string error;
};

struct Engine::ChunkLoad {
  std::shared_ptr<LoadJob> job;
  std::size_t index = 0;  // in the job
  LoadChunk chunk;
  ChunkIdentity identity;
  std::optional<Slab> filling;
  std::optional<SharedSlab> verified;
};

namespace {

constexpr std::chrono::hours kLongestDrain{24};

FileIoOptions file_options(const EngineOptions& options, const RootProbe& root) {
  return {root.id,
          root.caching,
          root.publish,
          options.request_bytes,
          options.load_depth,
          options.store_depth};
}

}  // namespace

Engine::Engine(const EngineOptions& options, EngineParts parts)
    : options_(options),
      table_(options.segments),
      paths_(options.root, options.namespace_digest, options.rank),
      root_reason_(std::move(parts.root.reason)),
      filesystem_(std::move(parts.root.filesystem)),
      io_engine_reason_(std::move(parts.io_engine_reason)),
      device_(std::move(parts.device)),
      io_engine_(std::move(parts.io_engine)) {
  const std::size_t slab_bytes = slab_bytes_of(options);
  pool_ = std::make_unique<SlabPool>(slab_bytes, options.host_memory / slab_bytes, *device_);
  device_->start();
  files_ = std::make_unique<FileIo>(*io_engine_, file_options(options, parts.root));
  housekeeper_ = std::make_unique<Housekeeper>(
      paths_, parts.root.id,
      SpaceLimits{options.capacity, options.free_space_floor / 100, options.store_depth},
      options.housekeeping);
}

Engine::~Engine() { close(); }

ChunkIdentity Engine::identity(const ChunkKey& key, std::uint64_t token_begin,
                               std::size_t blocks) const {
  if (blocks == 0 || blocks > options_.blocks_per_chunk) {
    throw std::invalid_argument("a chunk of " + std::to_string(blocks) + " blocks, where 1 to " +
                                std::to_string(options_.blocks_per_chunk) + " are possible");
  }
  ChunkIdentity identity;
  identity.namespace_digest = options_.namespace_digest;
  identity.key = key;
  identity.rank = options_.rank;
  identity.token_begin = token_begin;
  identity.block_tokens = options_.block_tokens;
  identity.block_count = static_cast<std::uint32_t>(blocks);
  identity.block_bytes = table_.block_bytes();
  return identity;
}

void Engine::check_blocks(const std::vector<BlockId>& blocks) const {
  for (const BlockId block : blocks) {
    if (static_cast<std::size_t>(block) >= options_.block_count) {
      throw std::invalid_argument("block id " + std::to_string(static_cast<std::size_t>(block)) +
                                  " in a KV cache of " + std::to_string(options_.block_count) +
                                  " blocks");
    }
  }
}

// ---- Store: engine's thread -> device's thread (gathered) -> I/O thread (stored).

std::optional<JobId> Engine::store(const ChunkKey& key, std::uint64_t token_begin,
                                   std::vector<BlockId> blocks, std::uintptr_t stream,
                                   UseTime used_at) {
  check_blocks(blocks);
  auto job = std::make_shared<StoreJob>();
  job->identity = identity(key, token_begin, blocks.size());
  job->used_ns = use_stamp(used_at, token_begin);
  bool closed = false;
  bool loads_wait = false;
  {
    const std::lock_guard lock(mutex_);
    closed = closed_;
    loads_wait = !waiting_loads_.empty();
  }
  closed = closed || !device_->failure().empty();
  if (!closed) job->sealed = find_in_memory(job->identity);
  const bool drop = closed || loads_wait;
  if (!drop && !job->sealed && !housekeeper_->space().has_room(job->identity.file_bytes())) {
    stats_.stores_dropped_full.fetch_add(1, std::memory_order_relaxed);
    return std::nullopt;
  }
  if (!drop && !job->sealed) job->filling = pool_->try_acquire();
  if (!job->sealed && !job->filling) {
    stats_.stores_dropped.fetch_add(1, std::memory_order_relaxed);
    return std::nullopt;
  }
  if (job->sealed) {  // nothing to gather, but the file may be gone
    const JobId id = job->id = begin_job();
    complete({CompletionKind::kGathered, id, {}, {}});
    write(std::move(job));
    return id;
  }
  Transfer transfer;
  transfer.direction = Direction::kGather;
  transfer.blocks = std::move(blocks);
  transfer.host = job->filling->bytes().data() + kHeaderBytes;
  transfer.after = device_->fence(stream);
  const JobId id = job->id = begin_job();
  transfer.done = [this, job = std::move(job)](Status status) mutable {
    gathered(std::move(job), std::move(status));
  };
  device_->submit(std::move(transfer));
  return id;
}

std::optional<SharedSlab> Engine::find_in_memory(const ChunkIdentity& identity) {
  std::optional<SharedSlab> found = pool_->find(identity.key);
  if (found && verify_header(found->bytes(), identity) != ChunkFault::kNone) found.reset();
  return found;
}

void Engine::gathered(std::shared_ptr<StoreJob> job, Status status) {
  complete({CompletionKind::kGathered, job->id, {}, status.message()});
  if (!status.is_ok()) {
    stats_.gathers_failed.fetch_add(1, std::memory_order_relaxed);
    return stored(job, status, FileWrite::Outcome::kFailed);
  }
  seal_chunk(job->filling->bytes(), job->identity);
  job->sealed = pool_->publish(std::move(*job->filling), job->identity.key);
  job->filling.reset();
  write(std::move(job));
}

void Engine::write(std::shared_ptr<StoreJob> job) {
  FileWrite request;
  request.path = paths_.chunk(job->identity.key);
  request.temporary = paths_.unique_temporary();
  request.root = paths_.root();
  request.directories = paths_.directories_for(job->identity.key);
  request.buffer = job->sealed->bytes().data();
  request.bytes = job->identity.file_bytes();
  request.modified_ns = job->used_ns;
  request.admit = [this, job] {
    job->reserved = housekeeper_->space().try_reserve(job->identity.file_bytes());
    return job->reserved;
  };
  writing_.begin();
  request.done = [this, job = std::move(job)](const Status& status, FileWrite::Outcome outcome) {
    writing_.end();
    settle_space(*job, status, outcome);
    stored(job, status, outcome);
  };
  files_->write(std::move(request));
}

void Engine::settle_space(const StoreJob& job, const Status& status, FileWrite::Outcome outcome) {
  SpaceLedger& space = housekeeper_->space();
  const std::size_t bytes = job.identity.file_bytes();
  if (job.reserved) space.settle(bytes, outcome == FileWrite::Outcome::kWritten);
  if (status.error_number() == ENOSPC || status.error_number() == EDQUOT) {
    space.met_full_disk(bytes, status.error_number() == EDQUOT);
  }
}

void Engine::stored(const std::shared_ptr<StoreJob>& job, const Status& status,
                    FileWrite::Outcome outcome) {
  switch (outcome) {
    case FileWrite::Outcome::kWritten:
      stats_.chunks_stored.fetch_add(1, std::memory_order_relaxed);
      stats_.bytes_stored.fetch_add(job->identity.file_bytes(), std::memory_order_relaxed);
      break;
    case FileWrite::Outcome::kAlreadyThere:
      stats_.stores_already_present.fetch_add(1, std::memory_order_relaxed);
      break;
    case FileWrite::Outcome::kFailed:
      if (status.kind() == StatusKind::kIo) {
        stats_.stores_failed.fetch_add(1, std::memory_order_relaxed);
      } else if (status.kind() == StatusKind::kFull) {
        stats_.stores_dropped_full.fetch_add(1, std::memory_order_relaxed);
      } else if (status.kind() == StatusKind::kCancelled) {
        stats_.stores_dropped.fetch_add(1, std::memory_order_relaxed);
      }
      break;
  }
  job->filling.reset();
  job->sealed.reset();
  start_waiting_loads();
  end_job({CompletionKind::kStored, job->id, {}, status.message()});
}

// ---- Load: engine's thread -> I/O thread (verify) -> device's thread (loaded).

JobId Engine::load(std::vector<LoadChunk> chunks, std::uintptr_t stream, UseTime used_at) {
  std::vector<std::shared_ptr<ChunkLoad>> loads;
  loads.reserve(chunks.size());
  auto job = std::make_shared<LoadJob>();
  for (LoadChunk& chunk : chunks) {
    check_blocks(chunk.blocks);
    auto load = std::make_shared<ChunkLoad>();
    load->identity = identity(chunk.key, chunk.token_begin, chunk.block_count);
    if (chunk.blocks.empty() || chunk.first_block + chunk.blocks.size() > chunk.block_count) {
      throw std::invalid_argument("a load of blocks that the chunk does not have");
    }
    load->job = job;
    load->index = loads.size();
    load->chunk = std::move(chunk);
    loads.push_back(std::move(load));
  }
  if (loads.empty()) throw std::invalid_argument("a load of no chunks");
  job->chunks_left = loads.size();
  job->after = device_->fence(stream);
  job->used_at = used_at;
  const JobId id = job->id = begin_job();
  for (std::shared_ptr<ChunkLoad>& load : loads) start_load(std::move(load));
  return id;
}

void Engine::start_load(std::shared_ptr<ChunkLoad> load) {
  bool closed = false;
  {
    const std::lock_guard lock(mutex_);
    closed = closed_;
  }
  if (closed) return loaded(load, Status::cancelled());
  if (const std::string lost = device_->failure(); !lost.empty()) {
    return loaded(load, Status::device(lost));
  }
  touch({{load->identity.key, load->identity.token_begin}}, load->job->used_at);
  load->verified = find_in_memory(load->identity);
  if (load->verified) {
    stats_.memory_hits.fetch_add(1, std::memory_order_relaxed);
    return scatter(std::move(load));
  }
  {
    const std::lock_guard lock(mutex_);
    waiting_loads_.push_back(std::move(load));
  }
  start_waiting_loads();
}

void Engine::touch(const std::vector<UsedChunk>& chunks, UseTime used_at) {
  for (const UsedChunk& chunk : chunks) {
    files_->touch(paths_.chunk(chunk.key), use_stamp(used_at, chunk.token_begin));
  }
}

void Engine::start_waiting_loads() {
  for (;;) {
    std::optional<Slab> slab;
    std::shared_ptr<ChunkLoad> load;
    {
      // In one piece: a slab that was taken and not used would be missed by whoever waits for it.
      const std::lock_guard lock(mutex_);
      if (waiting_loads_.empty()) return;
      slab = pool_->try_acquire();
      if (!slab) return;
      load = std::move(waiting_loads_.front());
      waiting_loads_.pop_front();
    }
    read(std::move(load), std::move(*slab));
  }
}

void Engine::read(std::shared_ptr<ChunkLoad> load, Slab slab) {
  FileRead request;
  request.path = paths_.chunk(load->identity.key);
  request.buffer = slab.bytes().data();
  request.bytes = load->identity.file_bytes();
  load->filling = std::move(slab);
  reading_.begin();
  request.done = [this, load = std::move(load)](const Status& status) {
    reading_.end();
    verify(load, status);
  };
  files_->read(std::move(request));
}

void Engine::verify(std::shared_ptr<ChunkLoad> load, const Status& read_status) {
  const std::string path = paths_.chunk(load->identity.key);
  Status status = read_status;
  if (status.is_ok()) {
    const ChunkFault fault = verify_chunk(load->filling->bytes(), load->identity);
    if (fault != ChunkFault::kNone) status = Status::bad_chunk(path, to_string(fault));
  }
  if (status.kind() == StatusKind::kBadChunk) {
    // Removed before the load is reported: the chunk that is recomputed must not find it.
    stats_.chunks_bad.fetch_add(1, std::memory_order_relaxed);
    files_->remove(path, [this, load = std::move(load), status](const Status& removed) {
      if (removed.is_ok()) stats_.chunks_bad_removed.fetch_add(1, std::memory_order_relaxed);
      loaded(load, status);
    });
    return;
  }
  if (!status.is_ok()) return loaded(load, status);
  stats_.bytes_loaded.fetch_add(load->identity.file_bytes(), std::memory_order_relaxed);
  load->verified = pool_->publish(std::move(*load->filling), load->identity.key);
  load->filling.reset();
  scatter(std::move(load));
}

void Engine::scatter(std::shared_ptr<ChunkLoad> load) {
  Transfer transfer;
  transfer.direction = Direction::kScatter;
  transfer.blocks = load->chunk.blocks;
  transfer.host = load->verified->bytes().data() + kHeaderBytes +
                  load->chunk.first_block * table_.block_bytes();
  transfer.after = load->job->after;
  transfer.done = [this, load = std::move(load)](const Status& status) { loaded(load, status); };
  device_->submit(std::move(transfer));
}

void Engine::loaded(const std::shared_ptr<ChunkLoad>& load, const Status& status) {
  if (status.is_ok()) {
    stats_.chunks_loaded.fetch_add(1, std::memory_order_relaxed);
  } else {
    stats_.loads_failed.fetch_add(1, std::memory_order_relaxed);
    if (status.kind() == StatusKind::kMissing) {
      stats_.chunks_missing.fetch_add(1, std::memory_order_relaxed);
    }
  }
  load->filling.reset();
  load->verified.reset();
  start_waiting_loads();

  LoadJob& job = *load->job;
  {
    const std::lock_guard lock(job.mutex);
    if (!status.is_ok()) {
      job.failed_chunks.push_back(load->index);
      if (job.error.empty()) job.error = status.message();
    }
    if (--job.chunks_left > 0) return;
  }
  std::sort(job.failed_chunks.begin(), job.failed_chunks.end());
  end_job({CompletionKind::kLoaded, job.id, std::move(job.failed_chunks), std::move(job.error)});
}

// ---- Jobs

JobId Engine::begin_job() {
  const std::lock_guard lock(mutex_);
  ++jobs_in_flight_;
  return JobId{next_job_++};
}

void Engine::complete(Completion completion) {
  const std::lock_guard lock(mutex_);
  completions_.push_back(std::move(completion));
}

void Engine::end_job(Completion completion) {
  const std::lock_guard lock(mutex_);
  completions_.push_back(std::move(completion));
  if (--jobs_in_flight_ == 0) idle_.notify_all();
}

std::vector<Completion> Engine::poll() {
  const std::lock_guard lock(mutex_);
  return std::exchange(completions_, {});
}

bool Engine::drain(std::chrono::duration<double> timeout) {
  const std::chrono::duration<double> longest = kLongestDrain;  // infinity overflows the clock
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::min(timeout, longest), [this] { return jobs_in_flight_ == 0; });
}

void Engine::close() {
  std::deque<std::shared_ptr<ChunkLoad>> waiting;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    waiting.swap(waiting_loads_);
  }
  for (const std::shared_ptr<ChunkLoad>& load : waiting) loaded(load, Status::cancelled());
  if (files_ != nullptr) files_->shutdown();
  // What the device still holds ends by itself: a gather finds the files shut down.
  {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return jobs_in_flight_ == 0; });
  }
  // Its thread may still be on the way back from the callback that ended the last job.
  device_->stop();
  housekeeper_->stop();
}

std::map<std::string, std::uint64_t> Engine::stats() const {
  std::map<std::string, std::uint64_t> all = stats_.snapshot();
  all.merge(housekeeper_->stats());
  all["chunks_touched"] = files_->touched();
  all["touches_failed"] = files_->touches_failed();
  const SlabCounts slabs = pool_->counts();
  all["slabs_total"] = slabs.total;
  all["slabs_free"] = slabs.free;
  all["slabs_in_use"] = slabs.in_use;
  all["slabs_cached"] = slabs.cached;
  all["unpinned_slabs"] = pool_->pin_error().empty() ? 0 : slabs.total;
  all["device_lost"] = device_->failure().empty() ? 0 : 1;
  all["reading_microseconds"] = reading_.microseconds();
  all["writing_microseconds"] = writing_.microseconds();
  all["direct_io_fallbacks"] = files_->direct_io_fallbacks();
  all["load_bytes_in_flight"] = files_->read_bytes_in_flight();
  all["store_bytes_in_flight"] = files_->write_bytes_in_flight();
  const std::lock_guard lock(mutex_);
  all["jobs_in_flight"] = jobs_in_flight_;
  return all;
}

std::map<std::string, std::string> Engine::info() const {
  std::map<std::string, std::string> all = device_->info();
  all["device_failure"] = device_->failure();
  all["filesystem"] = filesystem_;
  all["last_refusal"] = in_words(housekeeper_->space().last_refusal());
  all["io_engine"] = io_engine_->name();
  all["io_engine_reason"] = io_engine_reason_;
  all["direct_io"] = files_->caching() == Caching::kDirect ? "on" : "off";
  all["direct_io_reason"] =
      files_->direct_io_fallbacks() == 0 ? root_reason_ : "refused by the filesystem while in use";
  all["pin_error"] = pool_->pin_error();
  all["block_bytes"] = std::to_string(table_.block_bytes());
  all["segments"] = std::to_string(table_.segments().size());
  return all;
}

}  // namespace lmkv
