#include "engine/tier_copies.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace lmkv {
namespace {

constexpr std::size_t kGeneration = 1 << 16;              // keys; about 60 bytes each
constexpr auto kLongestHold = std::chrono::seconds(1);    // of a copy down, while there are reads
constexpr auto kLongestBelief = std::chrono::minutes(5);  // and as long again

void count(Stats::Counter& counter, std::uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

}  // namespace

struct TierCopies::Copy {
  Tier* to = nullptr;
  ChunkIdentity identity;
  std::int64_t used_ns = 0;
  std::optional<SharedSlab> chunk;
  std::function<void()> done;
  Clock::time_point held_since;
};

bool TierCopies::may_begin(Tier& to, const ChunkIdentity& chunk) {
  if (context_.closed) return false;
  Stats::Counter& dropped =
      is_remote(to) ? context_.stats.remote_stores_dropped : context_.stats.promotions_dropped;
  const std::size_t slabs = context_.pool->counts().total / context_.pool->sharers();
  const std::atomic<std::size_t>& under_way = is_remote(to) ? up_ : down_;
  const std::size_t part = context_.part_of_slabs();
  // Loads have as many in any case, whatever hangs.
  const std::size_t held = this->slabs() + context_.slabs_of_stores() + context_.abandoned();
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
  copy->used_ns = used_ns;
  copy->done = std::move(done);
  (up ? up_ : down_).fetch_add(1, std::memory_order_relaxed);
  context_.jobs.begin_quietly();
  if (up) {
    write(std::move(copy));
  } else {
    hold(std::move(copy));
  }
  return true;
}

void TierCopies::hold(std::shared_ptr<Copy> copy) {
  copy->held_since = Clock::now();
  std::shared_ptr<Copy> oldest;
  {
    const std::lock_guard lock(mutex_);
    held_.push_back(std::move(copy));
    // Of many not all can wait: as they come, others go.
    if (4 * held_.size() > 3 * context_.part_of_slabs()) {
      oldest = std::move(held_.front());
      held_.pop_front();
    }
  }
  if (oldest) write(std::move(oldest));
  begin_held();  // the last read may have ended before it was there
}

void TierCopies::begin_held(Clock::time_point now) {
  for (;;) {
    std::shared_ptr<Copy> copy;
    const bool is_busy = context_.reading.is_busy();
    {
      const std::lock_guard lock(mutex_);
      if (held_.empty() || (is_busy && now - held_.front()->held_since < kLongestHold)) return;
      copy = std::move(held_.front());
      held_.pop_front();
    }
    write(std::move(copy));
  }
}

void TierCopies::write(std::shared_ptr<Copy> copy) {
  Tier& to = *copy->to;
  Tier::Write request;
  request.key = copy->identity.key;
  request.buffer = copy->chunk->bytes().data();
  request.bytes = copy->identity.file_bytes();
  request.used_ns = copy->used_ns;
  request.done = [this, copy = std::move(copy)](const Status& status, Tier::WriteOutcome outcome) {
    end(*copy, status, outcome);
  };
  to.write(std::move(request));
}

void TierCopies::end(Copy& copy, const Status& status, Tier::WriteOutcome outcome) {
  count_end(copy, status, outcome);
  copy.chunk.reset();
  one_ended_();
  if (copy.done) copy.done();
  context_.jobs.end_quietly();
}

void TierCopies::count_end(const Copy& copy, const Status& status, Tier::WriteOutcome outcome) {
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
