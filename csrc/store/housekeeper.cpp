#include "store/housekeeper.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "common/background_thread.hpp"
#include "common/posix.hpp"
#include "store/evictor.hpp"
#include "store/lease.hpp"
#include "store/tree_scan.hpp"

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

}  // namespace

class Housekeeper::Worker final : public TreeVisitor {
 public:
  Worker(const ChunkPaths& paths, const FilesystemId& filesystem, const SpaceLimits& limits,
         const HousekeepingOptions& options)
      : space_(limits, [this] { attend(); }),
        paths_(paths),
        filesystem_(filesystem),
        limits_(limits),
        options_(options),
        policy_(make_least_recently_used()),
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
            {"temporaries_removed", temporaries_removed_},
            {"store_bytes_used", space_.used()},
            {"store_capacity", limits_.capacity}};
  }

  SpaceLedger space_;
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
    if (space_.may_have_excess() && Clock::now() >= not_before_) {
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

  // While stores go on: those of other processes are seen by the space that they take.
  void sample() {
    next_sample_ = Clock::now() + kSampleUnderWay;
    if (const auto space = filesystem_space(paths_.root(), filesystem_)) {
      space_.saw_filesystem(*space);
    } else {
      failures_.fetch_add(1, std::memory_order_relaxed);
    }
  }

  enum class Purpose { kCount, kEvict };

  // False if it was not finished.
  bool scan(Purpose purpose) {
    const Clock::time_point begin = Clock::now();
    // Where a mount has vanished, what is in its mount point is not counted, still less evicted.
    if (!filesystem_space(paths_.root(), filesystem_)) {
      failures_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
    purpose_ = purpose;
    scan_now_ns_ = purpose == Purpose::kEvict ? lease_.filesystem_now_ns() : system_now_ns();
    scanned_bytes_ = 0;
    candidates_.clear();
    space_.begin_scan();
    const ScanOutcome outcome = scan_tree(paths_.root(), *this);
    if (outcome == ScanOutcome::kStopped) return false;
    if (outcome == ScanOutcome::kIncomplete) failures_.fetch_add(1, std::memory_order_relaxed);
    space_.end_scan(scanned_bytes_, outcome == ScanOutcome::kComplete);
    passes_.fetch_add(1, std::memory_order_relaxed);
    scan_time_ = Clock::now() - begin;
    next_scan_ =
        Clock::now() + std::max<Clock::duration>(options_.scan_interval, kScanShare * scan_time_);
    return true;
  }

  void on_chunk(const RankName& rank, const ChunkKey& key, const FileFacts& facts) override {
    scanned_bytes_ += facts.bytes;
    if (purpose_ != Purpose::kEvict || facts.changed_ns > settled_ns()) return;
    candidates_.offer(
        {policy_->worth(facts, scan_now_ns_), key, rank, facts.bytes, facts.modified_ns});
  }

  void on_temporary(int directory, const char* name, const FileFacts& facts) override {
    const std::chrono::nanoseconds age(scan_now_ns_ - facts.modified_ns);
    if (age > options_.abandoned_after && ::unlinkat(directory, name, 0) == 0) {
      temporaries_removed_.fetch_add(1, std::memory_order_relaxed);
    } else {
      scanned_bytes_ += facts.bytes;
    }
  }

  // What changed after this is spared.
  [[nodiscard]] std::int64_t settled_ns() const {
    return lease_.filesystem_now_ns() - std::chrono::nanoseconds(options_.spared).count();
  }

  void renew_lease() {
    if (has_lease_) has_lease_ = lease_.renew();
  }

  void make_room() {
    switch (lease_.try_acquire()) {
      case EvictorLease::Answer::kFailed:
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
    // Others may have evicted, or the estimate was too high: the directory itself decides.
    while (space_.may_have_excess()) {
      if (!scan(Purpose::kEvict)) return false;
      const Excess excess = space_.excess();
      if (excess.bytes == 0) return true;
      reason_ = excess.reason;
      std::uint64_t left = excess.bytes;
      std::uint64_t freed_by_this_scan = 0;
      while (left > 0 && !stopping()) {
        if (files_left == 0) return false;
        const auto candidate = candidates_.take();
        if (!candidate) break;
        const std::uint64_t freed = try_evict(*candidate);
        if (freed != 0) --files_left;
        freed_by_this_scan += freed;
        left -= std::min(left, freed);
        if (!keep_going()) return false;
      }
      if (left == 0) return true;
      if (stopping() || freed_by_this_scan == 0) return false;
      sample();
    }
    return true;
  }

  std::uint64_t try_evict(const Candidate& candidate) {
    switch (evict(paths_.root(), candidate, settled_ns())) {
      case Eviction::kGone:
      case Eviction::kKept: return 0;
      case Eviction::kFailed: failures_.fetch_add(1, std::memory_order_relaxed); return 0;
      case Eviction::kEvicted: break;
    }
    chunks_evicted_.fetch_add(1, std::memory_order_relaxed);
    bytes_evicted_.fetch_add(candidate.bytes, std::memory_order_relaxed);
    evicted_for_[static_cast<std::size_t>(reason_)].fetch_add(1, std::memory_order_relaxed);
    space_.evicted(candidate.bytes);
    return std::max<std::uint64_t>(candidate.bytes, kPageBytes);  // a pass comes to an end
  }

  const ChunkPaths paths_;
  const FilesystemId filesystem_;
  const SpaceLimits limits_;
  const HousekeepingOptions options_;

  Counter passes_{0};
  Counter failures_{0};
  Counter chunks_evicted_{0};
  Counter bytes_evicted_{0};
  std::array<Counter, 4> evicted_for_{};  // chunks, by reason
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
  Clock::duration scan_time_{0};
  Clock::time_point next_scan_;
  Clock::time_point next_sample_;  // by a scan or an eviction that is under way
  Clock::time_point not_before_;   // eviction is not tried again until then

  std::mutex mutex_;
  std::condition_variable wake_;
  bool attention_ = false;  // guarded by mutex_, as ended_
  bool ended_ = false;
  std::atomic<bool> stopping_{false};
};

Housekeeper::Housekeeper(const ChunkPaths& paths, const FilesystemId& filesystem,
                         const SpaceLimits& limits, const HousekeepingOptions& options)
    : worker_(std::make_shared<Worker>(paths, filesystem, limits, options)) {
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

}  // namespace lmkv
