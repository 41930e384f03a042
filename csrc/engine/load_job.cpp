#include "engine/load_job.hpp"

#include <algorithm>
#include <utility>

namespace lmkv {

LoadJob::LoadJob(std::shared_ptr<const Fence> fence, UseTime used)
    : after(std::move(fence)), used_at(used) {}

void LoadJob::add(std::uint64_t bytes, Tier* tier) {
  const std::lock_guard lock(mutex_);
  chunks_.push_back({bytes, tier});
  ++left_;
}

std::uint64_t LoadJob::bytes() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t bytes = 0;
  for (const Chunk& chunk : chunks_) bytes += chunk.bytes;
  return bytes;
}

void LoadJob::begin(JobId id, Clock::time_point deadline) {
  id_ = id;
  deadline_ = deadline;
}

bool LoadJob::ask(std::size_t index, Tier& tier) {
  const std::lock_guard lock(mutex_);
  chunks_[index].tier = &tier;
  return chunks_[index].stage != Stage::kEnded;
}

bool LoadJob::scatter(std::size_t index) {
  const std::lock_guard lock(mutex_);
  if (chunks_[index].stage == Stage::kEnded) return false;
  chunks_[index].stage = Stage::kScattering;
  return true;
}

bool LoadJob::end(std::size_t index, const Status& status, Source source) {
  const std::lock_guard lock(mutex_);
  if (chunks_[index].stage == Stage::kEnded) return false;
  chunks_[index].stage = Stage::kEnded;
  if (!status.is_ok()) {
    completion_.failed_chunks.push_back(index);
    if (completion_.error.empty()) completion_.error = status.message();
  } else if (source == Source::kMemory) {
    completion_.memory_chunks.push_back(index);
  } else if (source == Source::kRemote) {
    completion_.remote_chunks.push_back(index);
  }
  return true;
}

LoadJob::GivenUp LoadJob::give_up(const Status& status) {
  GivenUp given_up;
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < chunks_.size(); ++i) {
    Chunk& chunk = chunks_[i];
    if (chunk.stage != Stage::kWaiting) continue;
    chunk.stage = Stage::kEnded;
    completion_.failed_chunks.push_back(i);
    if (status.kind() == StatusKind::kCancelled) completion_.cancelled_chunks.push_back(i);
    ++given_up.chunks;
    given_up.bytes += chunk.bytes;
    if (chunk.tier != nullptr) given_up.tiers.insert(chunk.tier);
  }
  if (given_up.chunks > 0 && completion_.error.empty()) completion_.error = status.message();
  return given_up;
}

bool LoadJob::settled(std::size_t chunks) {
  const std::lock_guard lock(mutex_);
  left_ -= chunks;
  return left_ == 0;
}

Completion LoadJob::completion() {
  const std::lock_guard lock(mutex_);
  Completion completion = std::move(completion_);
  completion.kind = CompletionKind::kLoaded;
  completion.job = id_;
  completion.seconds = std::chrono::duration<double>(Clock::now() - begun).count();
  std::ranges::sort(completion.failed_chunks);
  std::ranges::sort(completion.memory_chunks);
  std::ranges::sort(completion.remote_chunks);
  return completion;
}

}  // namespace lmkv
