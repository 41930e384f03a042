#include "engine/store_pipeline.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/counted_time.hpp"

namespace lmkv {
namespace {

void count_one(Stats::Counter& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

// Stores hold no more of the slabs than this, so that loads find some whatever the disk does.
std::size_t most_slabs_of(std::size_t slabs) { return slabs - std::max<std::size_t>(1, slabs / 4); }

// Of a root's stores on their way.
class SlabShare {
 public:
  explicit SlabShare(Root& root) : root_(&root) {
    root.slabs_of_stores.fetch_add(1, std::memory_order_relaxed);
  }
  SlabShare(const SlabShare&) = delete;
  SlabShare& operator=(const SlabShare&) = delete;
  ~SlabShare() { root_->slabs_of_stores.fetch_sub(1, std::memory_order_relaxed); }

 private:
  Root* root_;
};

}  // namespace

struct StorePipeline::Job {
  JobId id{};
  ChunkIdentity identity;
  Root* root = nullptr;
  std::int64_t used_ns = 0;
  bool reserved = false;  // in the ledger of space
  std::optional<SlabShare> share;
  std::optional<Slab> filling;       // until it is sealed
  std::optional<SharedSlab> sealed;  // from then on
};

StorePipeline::StorePipeline(EngineContext& context, LoadPipeline& loads)
    : context_(context),
      loads_(loads),
      most_slabs_(most_slabs_of(context.pool->counts().total)),
      most_slabs_of_a_root_(
          std::max<std::size_t>(1, most_slabs_ / context.roots->usable().size())) {}

std::optional<JobId> StorePipeline::begin(const ChunkKey& key, std::uint64_t token_begin,
                                          std::vector<BlockId> blocks, std::uintptr_t stream,
                                          UseTime used_at) {
  context_.check_blocks(blocks);
  auto job = std::make_shared<Job>();
  job->identity = context_.identity(key, token_begin, blocks.size());
  job->used_ns = use_stamp(used_at, token_begin);
  job->root = context_.roots->of(key);
  if (!may_begin(*job)) return std::nullopt;
  job->sealed = context_.find_in_memory(job->identity).chunk;
  if (!job->sealed) {
    if (!loads_.is_waiting()) job->filling = context_.pool->try_acquire();
    if (!job->filling) {
      count_one(context_.stats.stores_dropped);
      return std::nullopt;
    }
  }
  // Last: a trial that is admitted has to reach the disk.
  if (!job->root->stores.admits()) {
    count_one(context_.stats.stores_dropped_out_of_service);
    return std::nullopt;
  }
  job->share.emplace(*job->root);
  const JobId id = job->id = context_.jobs.begin();
  if (job->sealed) {  // nothing to gather, but the file may be gone
    context_.jobs.complete({CompletionKind::kGathered, id, {}, {}});
    write(std::move(job));
    return id;
  }
  Transfer transfer;
  transfer.direction = Direction::kGather;
  transfer.blocks = std::move(blocks);
  transfer.host = job->filling->bytes().data() + kHeaderBytes;
  transfer.after = context_.device->fence(stream);
  transfer.done = [this, job = std::move(job)](Status status) mutable {
    gathered(std::move(job), std::move(status));
  };
  context_.device->submit(std::move(transfer));
  return id;
}

bool StorePipeline::may_begin(const Job& job) {
  Stats& stats = context_.stats;
  Stats::Counter* dropped = nullptr;
  if (context_.closed || !context_.device->failure().empty()) {
    dropped = &stats.stores_dropped;
  } else if (job.root == nullptr || !job.root->stores.may_admit()) {
    dropped = &stats.stores_dropped_out_of_service;
  } else if (!has_share(*job.root)) {
    dropped = &stats.stores_dropped;
  } else if (!job.root->space().has_room(job.identity.file_bytes())) {
    dropped = &stats.stores_dropped_full;
  }
  if (dropped != nullptr) count_one(*dropped);
  return dropped == nullptr;
}

bool StorePipeline::has_share(const Root& root) const {
  std::size_t all = 0;
  for (const Root* each : context_.roots->usable()) {
    all += each->slabs_of_stores.load(std::memory_order_relaxed);
  }
  const auto of_each = [this](std::size_t slabs) {
    return std::max<std::size_t>(1, slabs / context_.pool->sharers());
  };
  return all < of_each(most_slabs_) &&
         root.slabs_of_stores.load(std::memory_order_relaxed) < of_each(most_slabs_of_a_root_);
}

void StorePipeline::gathered(std::shared_ptr<Job> job, Status status) {
  context_.jobs.complete({CompletionKind::kGathered, job->id, {}, status.message()});
  if (!status.is_ok()) {
    count_one(context_.stats.gathers_failed);
    return end(job, status, FileWrite::Outcome::kFailed);
  }
  {
    const CountedTime time(context_.checksum_ns);
    seal_chunk(job->filling->bytes(), job->identity);
  }
  job->sealed = context_.pool->publish(std::move(*job->filling), job->identity.key);
  job->filling.reset();
  write(std::move(job));
}

void StorePipeline::write(std::shared_ptr<Job> job) {
  Root& root = *job->root;
  FileWrite request;
  request.path = root.paths.chunk(job->identity.key);
  request.temporary = root.paths.unique_temporary(job->identity.key);
  request.directories = root.paths.directories_for(job->identity.key);
  request.buffer = job->sealed->bytes().data();
  request.bytes = job->identity.file_bytes();
  request.modified_ns = job->used_ns;
  request.admit = [job] {
    job->reserved = job->root->space().try_reserve(job->identity.file_bytes());
    return job->reserved;
  };
  context_.writing.begin();
  request.done = [this, job = std::move(job)](const Status& status, FileWrite::Outcome outcome) {
    context_.writing.end();
    settle_space(*job, status, outcome);
    note_health(*job, status, outcome);
    end(job, status, outcome);
  };
  root.files().write(std::move(request));
}

void StorePipeline::settle_space(const Job& job, const Status& status, FileWrite::Outcome outcome) {
  SpaceLedger& space = job.root->space();
  const std::size_t bytes = job.identity.file_bytes();
  if (job.reserved) space.settle(bytes, outcome == FileWrite::Outcome::kWritten);
  if (status.error_number() == ENOSPC || status.error_number() == EDQUOT) {
    space.met_full_disk(bytes, status.error_number() == EDQUOT);
  }
}

void StorePipeline::note_health(const Job& job, const Status& status, FileWrite::Outcome outcome) {
  Root& root = *job.root;
  if (outcome != FileWrite::Outcome::kFailed) {
    root.trial_chunk.worked(job.identity.key, job.identity.file_bytes());
    // A file that was there says nothing of writing.
    if (outcome == FileWrite::Outcome::kWritten) root.stores.succeeded();
    return;
  }
  // A full disk is the ledger's business.
  if (status.error_number() == ENOSPC || status.error_number() == EDQUOT) return;
  if (status.kind() == StatusKind::kIo) root.stores.failed(status.message());
}

void StorePipeline::count(const Job& job, const Status& status, FileWrite::Outcome outcome) {
  Stats& stats = context_.stats;
  switch (outcome) {
    case FileWrite::Outcome::kWritten:
      count_one(stats.chunks_stored);
      stats.bytes_stored.fetch_add(job.identity.file_bytes(), std::memory_order_relaxed);
      break;
    case FileWrite::Outcome::kAlreadyThere: count_one(stats.stores_already_present); break;
    case FileWrite::Outcome::kFailed:
      if (status.kind() == StatusKind::kIo) {
        count_one(stats.stores_failed);
      } else if (status.kind() == StatusKind::kFull) {
        count_one(stats.stores_dropped_full);
      } else if (status.kind() == StatusKind::kCancelled) {
        count_one(stats.stores_dropped);
      }
      break;
  }
}

void StorePipeline::end(const std::shared_ptr<Job>& job, const Status& status,
                        FileWrite::Outcome outcome) {
  count(*job, status, outcome);
  job->filling.reset();
  job->sealed.reset();
  job->share.reset();
  loads_.start_waiting();
  context_.jobs.end({CompletionKind::kStored, job->id, {}, status.message()});
}

}  // namespace lmkv
