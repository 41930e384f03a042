#include "engine/store_pipeline.hpp"

#include <algorithm>
#include <utility>

#include "common/counted_time.hpp"

namespace lmkv {
namespace {

void count_one(Stats::Counter& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

// Stores hold no more of the slabs than this, so that loads find some whatever the disk does.
std::size_t most_slabs_of(std::size_t slabs) { return slabs - std::max<std::size_t>(1, slabs / 4); }

}  // namespace

struct StorePipeline::Job {
  JobId id{};
  ChunkIdentity identity;
  Root* root = nullptr;
  std::int64_t used_ns = 0;
  std::optional<SlabShare> share;
  std::optional<Slab> filling;       // until it is sealed
  std::optional<SharedSlab> sealed;  // from then on
};

StorePipeline::StorePipeline(EngineContext& context, LoadPipeline& loads, TierCopies& copies)
    : context_(context),
      loads_(loads),
      copies_(copies),
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
  } else if (!job.root->has_room(job.identity.file_bytes())) {
    dropped = &stats.stores_dropped_full;
  }
  if (dropped != nullptr) count_one(*dropped);
  return dropped == nullptr;
}

bool StorePipeline::has_share(const Root& root) const {
  const auto of_each = [this](std::size_t slabs) {
    return std::max<std::size_t>(1, slabs / context_.pool->sharers());
  };
  // What goes on from here to the remote tier is among them, and what nobody has any more.
  const std::size_t taken = context_.slabs_of_stores() + copies_.slabs() + context_.abandoned();
  return taken < of_each(most_slabs_) &&
         root.slabs_of_stores.load(std::memory_order_relaxed) < of_each(most_slabs_of_a_root_);
}

void StorePipeline::gathered(std::shared_ptr<Job> job, Status status) {
  context_.jobs.complete({CompletionKind::kGathered, job->id, {}, status.message()});
  if (!status.is_ok()) {
    count_one(context_.stats.gathers_failed);
    return written(job, status, FileWrite::Outcome::kFailed);
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
  Tier::Write request;
  request.key = job->identity.key;
  request.buffer = job->sealed->bytes().data();
  request.bytes = job->identity.file_bytes();
  request.used_ns = job->used_ns;
  context_.writing.begin();
  request.done = [this, job = std::move(job)](const Status& status, FileWrite::Outcome outcome) {
    context_.writing.end();
    note_health(*job, status, outcome);
    written(job, status, outcome);
  };
  root.write(std::move(request));
}

void StorePipeline::note_health(const Job& job, const Status& status, FileWrite::Outcome outcome) {
  Root& root = *job.root;
  if (outcome != FileWrite::Outcome::kFailed) {
    root.trial_chunk.worked(job.identity.key, job.identity.file_bytes());
    // A file that was there says nothing of writing.
    if (outcome == FileWrite::Outcome::kWritten) root.stores.succeeded();
    return;
  }
  if (status.is_full_disk()) return;  // the ledger's business
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

// Whatever became of its file: another node may want the chunk all the same.
void StorePipeline::written(const std::shared_ptr<Job>& job, const Status& status,
                            FileWrite::Outcome outcome) {
  count(*job, status, outcome);
  const RemoteWrites writes = context_.options.remote.writes;
  Tier* const remote = context_.remote.get();
  if (remote == nullptr || !job->sealed || writes == RemoteWrites::kOnSecondUse) {
    return end(job, status.message());
  }
  job->share.reset();  // its slab counts as the copy's from here on
  const auto nothing = [] {};
  if (writes == RemoteWrites::kBehind) {
    copies_.begin(*remote, job->identity, job->used_ns, nothing);
    return end(job, status.message());
  }
  const auto then = [this, job, error = status.message()] { end(job, error); };
  if (!copies_.begin(*remote, job->identity, job->used_ns, then)) end(job, status.message());
}

void StorePipeline::end(const std::shared_ptr<Job>& job, const std::string& error) {
  job->filling.reset();
  job->sealed.reset();
  job->share.reset();
  loads_.start_waiting();
  context_.jobs.end({CompletionKind::kStored, job->id, {}, error});
}

}  // namespace lmkv
