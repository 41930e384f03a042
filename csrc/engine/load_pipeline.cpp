#include "engine/load_pipeline.hpp"

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/counted_time.hpp"

namespace lmkv {

namespace {

// How long a chunk is waited for that another brings: longer than a disk takes that works.
constexpr auto kArrival = std::chrono::seconds(1);

// Chunks of a remote tier in a row.
constexpr int kMostDamaged = 3;

}  // namespace

LoadPipeline::LoadPipeline(EngineContext& context, TierCopies& copies)
    : context_(context),
      copies_(copies),
      patience_(context.options.load_timeout),
      queues_(context.tiers(), std::max<std::size_t>(2, 2 * context.options.load_depth /
                                                            slab_bytes_of(context.options))) {
  copies_.when_one_ends([this] { start_waiting(); });
}

std::vector<std::shared_ptr<ChunkLoad>> LoadPipeline::make_loads(
    std::vector<LoadChunk> chunks, const std::shared_ptr<LoadJob>& job) const {
  if (chunks.empty()) throw std::invalid_argument("a load of no chunks");
  std::vector<std::shared_ptr<ChunkLoad>> loads;
  loads.reserve(chunks.size());
  for (LoadChunk& chunk : chunks) {
    context_.check_blocks(chunk.blocks);
    auto load = std::make_shared<ChunkLoad>();
    load->identity = context_.identity(chunk.key, chunk.token_begin, chunk.block_count);
    if (chunk.blocks.empty() || chunk.first_block + chunk.blocks.size() > chunk.block_count) {
      throw std::invalid_argument("a load of blocks that the chunk does not have");
    }
    load->job = job;
    load->index = loads.size();
    load->root = context_.roots->of(chunk.key);
    job->add(load->identity.file_bytes(), load->root);
    load->chunk = std::move(chunk);
    loads.push_back(std::move(load));
  }
  return loads;
}

JobId LoadPipeline::begin(std::vector<LoadChunk> chunks, std::uintptr_t stream, UseTime used_at) {
  auto job = std::make_shared<LoadJob>(context_.device->fence(stream), used_at);
  std::vector<std::shared_ptr<ChunkLoad>> loads = make_loads(std::move(chunks), job);
  const std::uint64_t bytes = job->bytes();
  const std::uint64_t ahead = bytes_left_.fetch_add(bytes, std::memory_order_relaxed);
  const JobId id = context_.jobs.begin();
  job->begin(id, job->begun + patience_.of(ahead + bytes));
  {
    const std::lock_guard lock(mutex_);
    jobs_.emplace(job->number(), job);
    next_deadline_ = std::min(next_deadline_, job->deadline());
  }
  for (std::shared_ptr<ChunkLoad>& load : loads) start(std::move(load));
  return id;
}

void LoadPipeline::start(std::shared_ptr<ChunkLoad> load) {
  if (context_.closed) return end(load, Status::cancelled());
  if (const std::string lost = context_.device->failure(); !lost.empty()) {
    return end(load, Status::device(lost));
  }
  SlabPool::Found found = context_.find_in_memory(load->identity);
  if (load->root != nullptr && !load->root->loads.is_out()) {
    load->root->touch(load->identity.key,
                      use_stamp(load->job->used_at, load->identity.token_begin));
  }
  if (found.chunk) return start_found(std::move(load), std::move(*found.chunk));
  if (found.is_arriving) {
    const std::lock_guard lock(mutex_);
    awaited_.push_back({std::move(load), Clock::now() + kArrival});
    return;
  }
  start_reading(std::move(load));
}

void LoadPipeline::start_found(std::shared_ptr<ChunkLoad> load, SharedSlab chunk) {
  load->verified = std::move(chunk);
  load->from_memory = true;
  context_.stats.memory_hits.fetch_add(1, std::memory_order_relaxed);
  spread(*load);
  scatter(std::move(load));
}

void LoadPipeline::start_reading(std::shared_ptr<ChunkLoad> load) {
  Root* const root = load->root;
  if (root != nullptr && root->loads.admits()) return queue(std::move(load), *root);
  try_remote(std::move(load), Status::out_of_service());
}

void LoadPipeline::try_remote(std::shared_ptr<ChunkLoad> load, const Status& why) {
  load->filling.reset();
  Tier* const remote = context_.remote.get();
  const bool may = remote != nullptr && load->tier != remote && !context_.closed;
  if (!may || !remote->loads.admits()) return end(load, why);
  queue(std::move(load), *remote);
}

void LoadPipeline::queue(std::shared_ptr<ChunkLoad> load, Tier& tier) {
  load->tier = &tier;
  if (!queues_.push(tier, load)) return end(load, Status::cancelled());
  start_waiting();
}

void LoadPipeline::start_arrived(Clock::time_point now) {
  std::vector<Awaited> awaited;
  {
    const std::lock_guard lock(mutex_);
    awaited.swap(awaited_);
  }
  for (Awaited& each : awaited) {
    SlabPool::Found found = context_.find_in_memory(each.load->identity);
    if (found.chunk) {
      context_.stats.chunks_awaited.fetch_add(1, std::memory_order_relaxed);
      start_found(std::move(each.load), std::move(*found.chunk));
    } else if (!found.is_arriving || now >= each.until) {
      start_reading(std::move(each.load));
    } else {
      const std::lock_guard lock(mutex_);
      awaited_.push_back(std::move(each));
    }
  }
}

bool LoadPipeline::is_waiting() const { return queues_.is_waiting(); }

void LoadPipeline::start_waiting() {
  while (std::optional<LoadQueues::Next> next = queues_.pop(*context_.pool)) {
    read(std::move(next->load), std::move(next->slab));
  }
}

void LoadPipeline::read(std::shared_ptr<ChunkLoad> load, Slab slab) {
  Tier& tier = *load->tier;
  Tier::Read request;
  request.key = load->identity.key;
  request.buffer = slab.bytes().data();
  request.bytes = load->identity.file_bytes();
  request.group = load->job->number();
  load->filling = std::move(slab);
  context_.reading.begin();
  request.done = [this, load = std::move(load)](const Status& status) {
    // Before the next takes a slab.
    if (status.kind() == StatusKind::kUnsettled) {
      context_.abandon(std::move(*load->filling));
      load->filling.reset();
      note_health(*load, status);
    }
    context_.reading.end();
    queues_.ended(*load->tier);
    start_waiting();  // before the checksums: the disk need not wait for them
    verify(load, status);
    copies_.begin_held();
  };
  tier.read(std::move(request));
}

void LoadPipeline::verify(std::shared_ptr<ChunkLoad> load, const Status& read_status) {
  Status status = read_status;
  if (status.is_ok()) {
    const CountedTime time(context_.checksum_ns);
    const ChunkFault fault = verify_chunk(load->filling->bytes(), load->identity);
    if (fault != ChunkFault::kNone) {
      status = Status::bad_chunk(load->tier->name_of(load->identity.key), to_string(fault));
    }
  }
  const bool is_remote = load->tier == context_.remote.get();
  if (status.kind() == StatusKind::kBadChunk) return refuse_bad(std::move(load), status);
  if (status.kind() != StatusKind::kUnsettled) note_health(*load, status);
  if (is_remote && status.kind() == StatusKind::kMissing) copies_.note_gone(load->identity.key);
  if (status.kind() == StatusKind::kCancelled) return end(load, status);
  if (!status.is_ok()) return try_remote(std::move(load), status);
  Stats& stats = context_.stats;
  stats.bytes_loaded.fetch_add(load->identity.file_bytes(), std::memory_order_relaxed);
  if (is_remote) {
    load->tier->damaged = 0;
    stats.remote_hits.fetch_add(1, std::memory_order_relaxed);
    stats.bytes_loaded_remote.fetch_add(load->identity.file_bytes(), std::memory_order_relaxed);
  }
  load->verified = context_.pool->publish(std::move(*load->filling), load->identity.key);
  load->filling.reset();
  spread(*load);
  scatter(std::move(load));
}

void LoadPipeline::refuse_bad(std::shared_ptr<ChunkLoad> load, const Status& status) {
  Tier& tier = *load->tier;
  const ChunkKey key = load->identity.key;
  bool remove = true;
  if (&tier != context_.remote.get()) {
    note_health(*load, status);
  } else {
    const bool was_bad = std::exchange(load->was_bad, true);
    if (!was_bad && !context_.closed && !tier.loads.is_out()) {
      load->filling.reset();
      return queue(std::move(load), tier);
    }
    remove = was_bad;  // it came twice
    copies_.note_gone(key);
  }
  // It may be the way that a client has. Then others have no need to lose theirs, and after some
  // chunks nothing more is asked for.
  if (&tier == context_.remote_orders) {
    tier.trial_chunk.failed(key, load->identity.file_bytes());
    const int before = tier.damaged.fetch_add(1);
    remove = remove && before == 0;
    if (before + 1 >= kMostDamaged) {
      tier.loads.take_out(status.message());
      refuse_waiting(tier);
    }
  }
  context_.stats.chunks_bad.fetch_add(1, std::memory_order_relaxed);
  if (!remove) return try_remote(std::move(load), status);
  // Removed before the load is reported: the chunk that is recomputed must not find it.
  tier.remove(key, [this, load = std::move(load), key, status](const Status& removed) {
    copies_.note_gone(key);  // again: it may have been found there meanwhile
    if (removed.is_ok()) {
      context_.stats.chunks_bad_removed.fetch_add(1, std::memory_order_relaxed);
    }
    try_remote(load, status);
  });
}

void LoadPipeline::spread(const ChunkLoad& load) {
  Tier* const remote = context_.remote.get();
  if (remote == nullptr) return;
  const std::int64_t used_ns = use_stamp(load.job->used_at, load.identity.token_begin);
  if (load.tier == remote) {
    copies_.note_remote(load.identity.key);
    if (load.root != nullptr) copies_.begin(*load.root, load.identity, used_ns);
  } else {
    copies_.begin(*remote, load.identity, used_ns);
  }
}

void LoadPipeline::note_health(const ChunkLoad& load, const Status& status) {
  Tier& tier = *load.tier;
  if (status.is_ok()) tier.trial_chunk.worked(load.identity.key, load.identity.file_bytes());
  if (status.is_ok() || status.kind() == StatusKind::kMissing ||
      (status.kind() == StatusKind::kBadChunk && status.error_number() == 0)) {
    tier.loads.succeeded();
  } else if (status.error_number() != 0) {
    tier.trial_chunk.failed(load.identity.key, load.identity.file_bytes());
    tier.loads.failed(status.message());
    if (&tier == context_.remote.get() && tier.loads.is_out()) refuse_waiting(tier);
  }
}

void LoadPipeline::scatter(std::shared_ptr<ChunkLoad> load) {
  // The blocks of one that was given up may be another request's by now.
  if (!load->job->scatter(load->index)) return end(load, Status::ok());
  Transfer transfer;
  transfer.direction = Direction::kScatter;
  transfer.blocks = load->chunk.blocks;
  transfer.host = load->verified->bytes().data() + kHeaderBytes +
                  load->chunk.first_block * context_.table.block_bytes();
  transfer.after = load->job->after;
  transfer.done = [this, load = std::move(load)](const Status& status) { end(load, status); };
  context_.device->submit(std::move(transfer));
}

void LoadPipeline::end(const std::shared_ptr<ChunkLoad>& load, const Status& status) {
  load->filling.reset();
  load->verified.reset();
  start_waiting();

  using Source = LoadJob::Source;
  LoadJob& job = *load->job;
  const bool is_remote = load->tier != nullptr && load->tier == context_.remote.get();
  const Source source = load->from_memory ? Source::kMemory
                        : is_remote       ? Source::kRemote
                                          : Source::kDisk;
  if (!job.end(load->index, status, source)) return;  // was given up
  bytes_left_.fetch_sub(load->identity.file_bytes(), std::memory_order_relaxed);
  if (status.is_ok()) {
    context_.stats.chunks_loaded.fetch_add(1, std::memory_order_relaxed);
  } else {
    count_failed(status);
  }
  if (job.settled(1)) finish(job);
}

void LoadPipeline::count_failed(const Status& status) {
  if (status.kind() == StatusKind::kCancelled) {
    context_.stats.loads_cancelled.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  context_.stats.loads_failed.fetch_add(1, std::memory_order_relaxed);
  if (status.kind() == StatusKind::kMissing) {
    context_.stats.chunks_missing.fetch_add(1, std::memory_order_relaxed);
  } else if (status.kind() == StatusKind::kOutOfService) {
    context_.stats.loads_refused.fetch_add(1, std::memory_order_relaxed);
  } else if (status.kind() == StatusKind::kTimedOut) {
    context_.stats.loads_timed_out.fetch_add(1, std::memory_order_relaxed);
  }
}

void LoadPipeline::finish(LoadJob& job) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.erase(job.number());
  }
  context_.jobs.end(job.completion());
}

// ---- Giving up

std::set<Tier*> LoadPipeline::give_up(const std::shared_ptr<LoadJob>& job, const Status& status) {
  LoadJob::GivenUp given_up = job->give_up(status);
  if (given_up.chunks == 0) return {};
  bytes_left_.fetch_sub(given_up.bytes, std::memory_order_relaxed);
  for (std::size_t i = 0; i < given_up.chunks; ++i) count_failed(status);
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(awaited_, [&](const Awaited& each) { return each.load->job == job; });
  }
  static_cast<void>(queues_.remove(*job, given_up.tiers));
  for (Tier* tier : given_up.tiers) tier->cancel(job->number());
  if (job->settled(given_up.chunks)) finish(*job);
  return std::move(given_up.tiers);
}

void LoadPipeline::refuse_waiting(Tier& tier) {
  std::vector<std::shared_ptr<ChunkLoad>> refused = queues_.clear(tier);
  if (&tier == context_.remote_orders) {
    context_.remote_orders->refuse_reads(Status::out_of_service());
  }
  for (std::shared_ptr<ChunkLoad>& load : refused) {
    try_remote(std::move(load), Status::out_of_service());
  }
}

void LoadPipeline::cancel(JobId id) {
  std::shared_ptr<LoadJob> job;
  {
    const std::lock_guard lock(mutex_);
    const auto found = jobs_.find(static_cast<std::uint64_t>(id));
    if (found == jobs_.end()) return;
    job = found->second;
  }
  for (Tier* tier : give_up(job, Status::cancelled())) watch(*tier, *job);
}

void LoadPipeline::watch(Tier& tier, const LoadJob& job) {
  if (!tier.is_reading()) return;
  const std::lock_guard lock(mutex_);
  const bool is_watched =
      std::ranges::any_of(watches_, [&](const Watch& each) { return each.tier == &tier; });
  if (!is_watched) watches_.push_back({&tier, job.begun, job.deadline()});
}

void LoadPipeline::look_at_watched(Clock::time_point now) {
  std::vector<Watch> due;
  {
    const std::lock_guard lock(mutex_);
    const auto is_due = [now](const Watch& each) { return each.deadline <= now; };
    std::ranges::copy_if(watches_, std::back_inserter(due), is_due);
    std::erase_if(watches_, is_due);
  }
  for (const Watch& each : due) take_out_if_stalled(*each.tier, each.begun, now);
}

void LoadPipeline::take_out_if_stalled(Tier& tier, Clock::time_point since, Clock::time_point now) {
  if (!tier.is_reading()) return;
  tier.loads.stalled(since, "reads take too long", now);
  if (tier.loads.is_out()) refuse_waiting(tier);
}

std::vector<std::shared_ptr<LoadJob>> LoadPipeline::take_late(Clock::time_point now) {
  std::vector<std::shared_ptr<LoadJob>> late;
  const std::lock_guard lock(mutex_);
  if (now < next_deadline_) return late;
  next_deadline_ = Clock::time_point::max();
  for (const auto& [number, job] : jobs_) {
    if (job->deadline() <= now) {
      late.push_back(job);
    } else {
      next_deadline_ = std::min(next_deadline_, job->deadline());
    }
  }
  return late;
}

void LoadPipeline::give_up_late(Clock::time_point now) {
  patience_.observe(context_.stats.bytes_loaded, context_.reading.microseconds());
  for (const std::shared_ptr<LoadJob>& job : take_late(now)) {
    for (Tier* tier : give_up(job, Status::timed_out("a load took longer than its time"))) {
      take_out_if_stalled(*tier, job->begun, now);
    }
  }
  look_at_watched(now);
}

void LoadPipeline::close() {
  std::vector<std::shared_ptr<LoadJob>> jobs;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, job] : jobs_) jobs.push_back(job);
  }
  for (const std::shared_ptr<LoadJob>& job : jobs) give_up(job, Status::cancelled());
}

}  // namespace lmkv
