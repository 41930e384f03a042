#include "engine/tier_copies.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace lmkv {
namespace {

constexpr std::size_t kGeneration = 1 << 16;              // keys; about 60 bytes each
constexpr std::size_t kPartOfSlabs = 8;                   // one of so many
constexpr auto kLongestBelief = std::chrono::minutes(5);  // and as long again

void count(Stats::Counter& counter, std::uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

}  // namespace

struct TierCopies::Copy {
  Tier* to = nullptr;
  ChunkIdentity identity;
  std::optional<SharedSlab> chunk;
  std::function<void()> done;
};

bool TierCopies::may_begin(Tier& to, const ChunkIdentity& chunk) {
  if (context_.closed) return false;
  Stats::Counter& dropped =
      is_remote(to) ? context_.stats.remote_stores_dropped : context_.stats.promotions_dropped;
  const std::size_t slabs = context_.pool->counts().total / context_.pool->sharers();
  const std::atomic<std::size_t>& under_way = is_remote(to) ? up_ : down_;
  const std::size_t part = std::max<std::size_t>(1, slabs / kPartOfSlabs);
  // Loads have as many in any case, whatever hangs.
  const std::size_t held = this->slabs() + context_.slabs_of_stores();
  const bool is_busy = under_way >= part || held + part >= slabs;
  if (is_busy || !to.has_room(chunk.file_bytes()) || !to.stores.may_admit()) {
    count(dropped);
    return false;
  }
  return true;
}

bool TierCopies::begin(Tier& to, const ChunkIdentity& chunk, std::int64_t used_ns,
                       std::function<void()> done) {
  const bool up = is_remote(to);
  if (up && !done && is_known_remote(chunk.key, Clock::now())) return false;  // a use of it
  if (!begin_key(up, chunk.key)) return false;
  if (!may_begin(to, chunk)) {
    end_key(up, chunk.key);
    return false;
  }
  auto copy = std::make_shared<Copy>();
  copy->chunk = context_.find_in_memory(chunk).chunk;
  // Last: a trial that is admitted has to reach the tier.
  if (!copy->chunk || !to.stores.admits()) {
    count(up ? context_.stats.remote_stores_dropped : context_.stats.promotions_dropped);
    end_key(up, chunk.key);
    return false;
  }
  copy->to = &to;
  copy->identity = chunk;
  copy->done = std::move(done);
  (up ? up_ : down_).fetch_add(1, std::memory_order_relaxed);
  context_.jobs.begin_quietly();
  Tier::Write request;
  request.key = chunk.key;
  request.buffer = copy->chunk->bytes().data();
  request.bytes = chunk.file_bytes();
  request.used_ns = used_ns;
  request.done = [this, copy = std::move(copy)](const Status& status, Tier::WriteOutcome outcome) {
    end(*copy, status, outcome);
    copy->chunk.reset();
    one_ended_();
    if (copy->done) copy->done();
    context_.jobs.end_quietly();
  };
  to.write(std::move(request));
  return true;
}

void TierCopies::end(const Copy& copy, const Status& status, Tier::WriteOutcome outcome) {
  Stats& stats = context_.stats;
  const bool up = is_remote(*copy.to);
  (up ? up_ : down_).fetch_sub(1, std::memory_order_relaxed);
  end_key(up, copy.identity.key);
  if (outcome != Tier::WriteOutcome::kFailed) {
    const bool is_new = outcome == Tier::WriteOutcome::kWritten;
    // A file that was there says nothing of writing; a remote engine has answered.
    if (is_new || copy.to == context_.remote_orders) copy.to->stores.succeeded();
    if (is_new) {
      count(up ? stats.remote_chunks_stored : stats.chunks_promoted);
      count(up ? stats.remote_bytes_stored : stats.bytes_promoted, copy.identity.file_bytes());
    }
    copy.to->trial_chunk.worked(copy.identity.key, copy.identity.file_bytes());
    if (up) note_remote(copy.identity.key);
    return;
  }
  if (status.kind() == StatusKind::kIo && !status.is_full_disk()) {
    copy.to->stores.failed(status.message());
    count(up ? stats.remote_stores_failed : stats.promotions_failed);
  } else {
    count(up ? stats.remote_stores_dropped : stats.promotions_dropped);
  }
}

bool TierCopies::begin_key(bool up, const ChunkKey& key) {
  const std::lock_guard lock(mutex_);
  return (up ? going_up_ : going_down_).insert(key).second;
}

void TierCopies::end_key(bool up, const ChunkKey& key) {
  const std::lock_guard lock(mutex_);
  (up ? going_up_ : going_down_).erase(key);
}

void TierCopies::note_remote(const ChunkKey& key, Clock::time_point now) {
  std::unordered_set<ChunkKey, ChunkKeyHash> old;  // ends without the lock: it has many nodes
  const std::lock_guard lock(mutex_);
  if (younger_.size() >= kGeneration || now - begun_ > kLongestBelief) {
    old = std::exchange(older_, std::exchange(younger_, {}));
    begun_ = now;
  }
  younger_.insert(key);
}

void TierCopies::note_gone(const ChunkKey& key) {
  const std::lock_guard lock(mutex_);
  younger_.erase(key);
  older_.erase(key);
}

bool TierCopies::is_known_remote(const ChunkKey& key, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (now - begun_ > 2 * kLongestBelief) return false;  // nothing was seen for as long
  return younger_.contains(key) || (now - begun_ <= kLongestBelief && older_.contains(key));
}

}  // namespace lmkv
