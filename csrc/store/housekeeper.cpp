#include "store/housekeeper.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

#include "common/background_thread.hpp"
#include "common/posix.hpp"
#include "store/evicted_keys.hpp"
#include "store/evictor.hpp"
#include "store/file_times.hpp"
#include "store/lease.hpp"
#include "store/tree_scan.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {
namespace {

using Clock = std::chrono::steady_clock;
using Counter = std::atomic<std::uint64_t>;

// A scan takes at most this part of the time, in the long run.
constexpr int kScanShare = 20;
// The same while stores wait for what scans find.
constexpr int kUrgentScanShare = 5;
// How long a scan or an eviction goes on without a look at the free space.
constexpr std::chrono::milliseconds kSampleUnderWay{10};
// Of a chunk that is too old: it goes before any other.
constexpr double kWorthNothing = -std::numeric_limits<double>::infinity();
// Of one that a wrong clock stamped: its time would keep it for years, and says nothing. They go
// next, tails before heads; the next use sets the time right.
constexpr double kOfAWrongClock = std::numeric_limits<double>::lowest();

}  // namespace

class Housekeeper::Worker final : public TreeVisitor {
 public:
  Worker(const ChunkPaths& paths, const MountPlace& place, const SpaceLimits& limits,
         const HousekeepingOptions& options)
      : space_(limits, [this] { attend(); }),
        evicted_keys_(paths),
        paths_(paths),
        place_(place),
        limits_(limits),
        options_(options),
        policy_(make_eviction_policy(options.order)),
        candidates_(options.candidates),
        lease_(paths, options.lease_expiry, options.access) {}

  // The thread. `self` keeps what it works on.
  static void run(const std::shared_ptr<Worker>& self) {
    become_background_thread("lmkv-keeper");
    self->loop();
    self->lease_.release();
    const std::lock_guard lock(self->mutex_);
    self->ended_ = true;
    self->wake_.notify_all();
  }

  [[nodiscard]] bool stop() {
    std::unique_lock lock(mutex_);
    stopping_.store(true, std::memory_order_relaxed);
    wake_.notify_all();
    return wake_.wait_for(lock, options_.stop_timeout, [this] { return ended_; });
  }

  [[nodiscard]] std::map<std::string, std::uint64_t> stats() const {
    return {{"housekeeping_passes", passes_},
            {"housekeeping_failures", failures_},
            {"chunks_evicted", chunks_evicted_},
            {"bytes_evicted", bytes_evicted_},
            {"chunks_evicted_capacity", evicted_for(EvictionReason::kCapacity)},
            {"chunks_evicted_floor", evicted_for(EvictionReason::kFloor)},
            {"chunks_evicted_full_disk", evicted_for(EvictionReason::kFullDisk)},
            {"chunks_evicted_age", evicted_for(EvictionReason::kAge)},
            {"temporaries_removed", temporaries_removed_},
            {"store_bytes_used", space_.used()},
            {"store_capacity", limits_.capacity}};
  }

  SpaceLedger space_;
  EvictedKeys evicted_keys_;
  std::thread thread;

 private:
  // ---- Any thread

  [[nodiscard]] std::uint64_t evicted_for(EvictionReason reason) const {
    return evicted_for_[static_cast<std::size_t>(reason)];
  }

  void attend() {
    {
      const std::lock_guard lock(mutex_);
      attention_ = true;
    }
    wake_.notify_all();
  }

  // ---- The housekeeping thread

  void loop() {
    attempt([this] {
      sample();
      scan(Purpose::kCount);
    });
    while (wait()) attempt([this] { look_after_it(); });
  }

  void look_after_it() {
    sample();
    if ((space_.may_have_excess() || too_old_ > 0) && Clock::now() >= not_before_) {
      make_room();
    } else if (Clock::now() >= next_scan_) {
      scan(Purpose::kCount);
    }
  }

  // Out of memory, say: a cache that is not kept in order is no reason to end the engine.
  template <typename F>
  void attempt(F&& work) {
    try {
      work();
    } catch (const std::exception&) {
      failures_.fetch_add(1, std::memory_order_relaxed);
      has_lease_ = false;
      lease_.release();
      candidates_.clear();
      pause(options_.sample_interval);
    }
  }

  // Until there is something to look at; false when it is time to end.
  bool wait() {
    Clock::time_point until = Clock::now() + options_.sample_interval;
    if (not_before_ > Clock::now()) until = std::min(until, not_before_);
    std::unique_lock lock(mutex_);
    wake_.wait_until(lock, until, [this] { return stopping() || attention_; });
    attention_ = false;
    return !stopping();
  }

  [[nodiscard]] bool stopping() const { return stopping_.load(std::memory_order_relaxed); }
  bool keep_going() override {
    if (Clock::now() >= next_sample_) sample();
    if (purpose_ == Purpose::kCount) return !stopping();
    renew_lease();
    return has_lease_ && !stopping();
  }

  // While stores go on: those of other processes are seen by the space that they take. False if the
  // filesystem does not tell, or is not there.
  bool sample() {
    next_sample_ = Clock::now() + kSampleUnderWay;
    if (const auto space = filesystem_space(paths_.root(), place_)) {
      space_.saw_filesystem(*space);
      return true;
    }
    failures_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }

  enum class Purpose { kCount, kEvict };

  // False if it was not finished.
  bool scan(Purpose purpose) {
    const Clock::time_point begin = Clock::now();
    // Where a mount has vanished, what is in its mount point is not counted, still less evicted.
    if (!sample()) return false;
    purpose_ = purpose;
    scan_now_ns_ =
        purpose == Purpose::kEvict ? lease_.filesystem_now_ns() : filesystem_now_ns(paths_);
    scanned_bytes_ = 0;
    too_old_ = 0;
    candidates_.clear();
    policy_->begin_scan(scan_now_ns_);
    space_.begin_scan();
    ScanOutcome outcome = scan_tree(paths_.root(), *this);
    if (outcome == ScanOutcome::kStopped) return false;
    // It may have vanished meanwhile.
    if (!sample()) outcome = ScanOutcome::kIncomplete;
    if (outcome == ScanOutcome::kIncomplete) failures_.fetch_add(1, std::memory_order_relaxed);
    space_.end_scan(scanned_bytes_, outcome == ScanOutcome::kComplete);
    passes_.fetch_add(1, std::memory_order_relaxed);
    scan_time_ = Clock::now() - begin;
    next_scan_ =
        Clock::now() + std::max<Clock::duration>(options_.scan_interval, kScanShare * scan_time_);
    candidates_until_ = Clock::now();
    if (purpose == Purpose::kEvict) candidates_until_ += kUrgentScanShare * scan_time_;
    return true;
  }

  void on_chunk(const RankName& rank, const ChunkKey& key, const FileFacts& facts) override {
    scanned_bytes_ += facts.bytes;
    double worth = kOfAWrongClock;
    if (!is_of_the_future(facts.modified_ns, scan_now_ns_)) {
      worth = policy_->worth(rank, key, facts);
    }
    if (is_too_old(facts)) {
      worth = kWorthNothing;
      ++too_old_;
    }
    if (purpose_ != Purpose::kEvict) return;
    const std::int64_t now = lease_.filesystem_now_ns();
    if (changed_since(settled_ns(now), facts.changed_ns, now)) return;
    candidates_.offer({worth, key, rank, facts.bytes, facts.modified_ns});
  }

  [[nodiscard]] bool is_too_old(const FileFacts& facts) const {
    const std::chrono::nanoseconds unused(scan_now_ns_ - use_of(facts.modified_ns).last_ns);
    return options_.max_age.count() > 0 && unused > options_.max_age;
  }

  void on_temporary(int directory, const char* name, const FileFacts& facts) override {
    const std::chrono::nanoseconds limit(options_.abandoned_after);
    const std::int64_t before = scan_now_ns_ - limit.count();
    if (is_abandoned(facts, before, scan_now_ns_) && ::unlinkat(directory, name, 0) == 0) {
      temporaries_removed_.fetch_add(1, std::memory_order_relaxed);
    } else {
      scanned_bytes_ += facts.bytes;
    }
  }

  // What changed after this is spared.
  [[nodiscard]] std::int64_t settled_ns(std::int64_t now_ns) const {
    return now_ns - std::chrono::nanoseconds(options_.spared).count();
  }

  void renew_lease() {
    if (has_lease_) has_lease_ = lease_.renew();
  }

  void make_room() {
    switch (lease_.try_acquire()) {
      case EvictorLease::Answer::kFailed:
        // The directory that it lies in is gone, and with it all that was counted.
        if (is_gone(errno) && space_.is_full()) scan(Purpose::kCount);
        failures_.fetch_add(1, std::memory_order_relaxed);
        pause(options_.sample_interval);
        return;
      case EvictorLease::Answer::kBusy:
        // Somebody evicts. What is left after that only a scan can tell, and stores wait for it.
        if (space_.is_full()) scan(Purpose::kCount);
        pause(options_.sample_interval / 10);
        return;
      case EvictorLease::Answer::kHeld: break;
    }
    has_lease_ = true;
    reason_ = EvictionReason::kNone;
    const bool achieved = evict_excess();
    has_lease_ = false;
    lease_.release();
    sample();
    space_.made_room(reason_);
    if (!achieved) pause(options_.sample_interval);
  }

  // Before eviction is tried again, with the scan that it begins with.
  void pause(Clock::duration shortest) {
    not_before_ = Clock::now() + std::max(shortest, kUrgentScanShare * scan_time_);
  }

  // Whether the excess is gone, be it that the scan found none.
  bool evict_excess() {
    sample();
    space_.begin_pass();
    std::size_t files_left = options_.files_per_pass;
    // Others may have evicted, or the estimate was too high: the directory itself decides. But one
    // of many files is not read again for every pass.
    while (space_.may_have_excess() || too_old_ > 0) {
      const bool fresh = candidates_.next() == nullptr || Clock::now() >= candidates_until_;
      if (fresh && !scan(Purpose::kEvict)) return false;
      purpose_ = Purpose::kEvict;
      const Excess excess = space_.excess();
      reason_ = excess.reason;
      std::uint64_t left = excess.bytes;
      std::uint64_t freed_by_this_scan = 0;
      while ((left > 0 || next_is_too_old()) && !stopping()) {
        if (files_left == 0) return false;
        const auto candidate = candidates_.take();
        if (!candidate) break;
        const std::uint64_t freed = try_evict(*candidate);
        if (freed != 0) --files_left;
        freed_by_this_scan += freed;
        left -= std::min(left, freed);
        if (!keep_going()) return false;
      }
      if (left == 0 && too_old_ == 0) return true;
      if (stopping() || (fresh && freed_by_this_scan == 0)) return false;
      candidates_.clear();
      sample();
    }
    return true;
  }

  [[nodiscard]] bool next_is_too_old() {
    const Candidate* const next = candidates_.next();
    return next != nullptr && next->worth == kWorthNothing;
  }

  std::uint64_t try_evict(const Candidate& candidate) {
    const std::int64_t now = lease_.filesystem_now_ns();
    switch (evict(paths_.root(), candidate, settled_ns(now), now)) {
      case Eviction::kGone:
      case Eviction::kKept: return 0;
      case Eviction::kFailed: failures_.fetch_add(1, std::memory_order_relaxed); return 0;
      case Eviction::kEvicted: break;
    }
    policy_->evicted(candidate.rank, candidate.key);
    evicted_keys_.add(candidate.rank, candidate.key);
    const bool too_old = candidate.worth == kWorthNothing;
    if (too_old && too_old_ > 0) --too_old_;
    const EvictionReason reason = too_old ? EvictionReason::kAge : reason_;
    chunks_evicted_.fetch_add(1, std::memory_order_relaxed);
    bytes_evicted_.fetch_add(candidate.bytes, std::memory_order_relaxed);
    evicted_for_[static_cast<std::size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
    space_.evicted(candidate.bytes);
    return std::max<std::uint64_t>(candidate.bytes, kPageBytes);  // a pass comes to an end
  }

  const ChunkPaths paths_;
  const MountPlace place_;
  const SpaceLimits limits_;
  const HousekeepingOptions options_;

  Counter passes_{0};
  Counter failures_{0};
  Counter chunks_evicted_{0};
  Counter bytes_evicted_{0};
  std::array<Counter, 5> evicted_for_{};  // chunks, by reason
  Counter temporaries_removed_{0};

  // The housekeeping thread's alone, up to the blank line.
  const std::unique_ptr<EvictionPolicy> policy_;
  Candidates candidates_;
  EvictorLease lease_;
  bool has_lease_ = false;
  EvictionReason reason_ = EvictionReason::kNone;  // of the pass that is under way
  Purpose purpose_ = Purpose::kCount;
  std::int64_t scan_now_ns_ = 0;
  std::uint64_t scanned_bytes_ = 0;
  std::uint64_t too_old_ = 0;  // chunks that the last scan found and that are still there
  Clock::duration scan_time_{0};
  Clock::time_point candidates_until_;  // from then on they are not what goes first any more
  Clock::time_point next_scan_;
  Clock::time_point next_sample_;  // by a scan or an eviction that is under way
  Clock::time_point not_before_;   // eviction is not tried again until then

  std::mutex mutex_;
  std::condition_variable wake_;
  bool attention_ = false;  // guarded by mutex_, as ended_
  bool ended_ = false;
  std::atomic<bool> stopping_{false};
};

Housekeeper::Housekeeper(const ChunkPaths& paths, const MountPlace& place,
                         const SpaceLimits& limits, const HousekeepingOptions& options)
    : worker_(std::make_shared<Worker>(paths, place, limits, options)) {
  worker_->thread = std::thread([worker = worker_] { Worker::run(worker); });
}

SpaceLedger& Housekeeper::space() const { return worker_->space_; }

void Housekeeper::stop() {
  std::thread& thread = worker_->thread;
  if (!thread.joinable()) return;
  if (worker_->stop()) {
    thread.join();
  } else {
    thread.detach();
  }
}

std::map<std::string, std::uint64_t> Housekeeper::stats() const { return worker_->stats(); }

std::vector<ChunkKey> Housekeeper::take_evicted() { return worker_->evicted_keys_.take(); }

}  // namespace lmkv
