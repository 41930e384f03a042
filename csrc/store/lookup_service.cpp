#include "store/lookup_service.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "common/background_thread.hpp"

namespace lmkv {
namespace {

using Clock = std::chrono::steady_clock;

// Keys that a thread takes at once: about 100 us of system calls when the kernel knows them.
constexpr std::size_t kSlice = 64;
// Where a slice takes longer, keys are not at hand, and all threads wait for them at once. Else
// two are enough, and only for so many keys that the second is worth waking.
constexpr std::chrono::microseconds kSlowSlice{400};
constexpr std::size_t kWorthTwoThreads = 2 * kSlice;

// The first prompts of an engine do not wait for tables that grow.
constexpr std::size_t kFirstKeys = 1024;

// Keys that were asked for together, in order.
struct Batch {
  std::vector<ChunkKey> keys;
  Until until = Until::kEnd;
  std::uint64_t generation = 0;  // answers to questions of an older one are dropped
  std::size_t next = 0;          // the first that no thread has taken
  std::size_t end = 0;           // behind the last that matters: all, or up to the first absent one
  unsigned slices_asked = 0;     // of those that threads have taken, without an answer yet

  [[nodiscard]] bool taken() const { return next >= keys.size(); }
};

// Keys that were there when they were last asked for, which was after `since`.
struct Seen {
  Clock::time_point since;
  std::unordered_set<ChunkKey, ChunkKeyHash> keys;

  [[nodiscard]] bool has(const ChunkKey& key, Clock::time_point now,
                         Clock::duration longest) const {
    return now - since <= longest && keys.contains(key);
  }
};

enum class Known { kPresent, kAbsent, kOpen, kGivenUp, kUnasked };

// What is known of a key that is not known to be present.
struct Question {
  Clock::time_point at;  // asked, or answered
  bool absent = false;   // the answer, if there is one yet
};

}  // namespace

class LookupService::Worker {
 public:
  Worker(Ask filesystem, const LookupOptions& options)
      : filesystem_(std::move(filesystem)), options_(options), recent_{Clock::now(), {}} {
    questions_.reserve(kFirstKeys);
    recent_.keys.reserve(kFirstKeys);
  }

  std::optional<std::size_t> lookup(std::span<const ChunkKey> keys, Seconds patience,
                                    Absence absence) {
    const Clock::time_point deadline = after(patience);
    std::unique_lock lock(mutex_);
    for (std::size_t run = 0;;) {
      const Clock::time_point now = Clock::now();
      while (run < keys.size() && remembered(keys[run], now)) ++run;
      if (run == keys.size()) return run;
      switch (known(keys[run], now)) {
        case Known::kUnasked: ask(keys.subspan(run), Until::kFirstAbsent, now); break;
        case Known::kOpen: break;
        default:
          if (absence == Absence::kForget) tell(keys[run], now);
          return run;
      }
      if (!wait(lock, deadline)) return std::nullopt;
    }
  }

  std::optional<std::vector<bool>> present(std::span<const ChunkKey> keys, Seconds patience,
                                           Absence absence) {
    const Clock::time_point deadline = after(patience);
    std::unique_lock lock(mutex_);
    for (;;) {
      const Clock::time_point now = Clock::now();
      std::vector<ChunkKey> unasked;
      bool open = false;
      for (const ChunkKey& key : keys) {
        const Known answer = known(key, now);
        if (answer == Known::kUnasked) unasked.push_back(key);
        open = open || answer == Known::kOpen;
      }
      if (!open && unasked.empty()) {
        std::vector<bool> there;
        there.reserve(keys.size());
        for (const ChunkKey& key : keys) {
          there.push_back(absence == Absence::kForget ? tell(key, now)
                                                      : known(key, now) == Known::kPresent);
        }
        return there;
      }
      ask(unasked, Until::kEnd, now);
      if (!wait(lock, deadline)) return std::nullopt;
    }
  }

  void told(std::span<const ChunkKey> keys) {
    const std::lock_guard lock(mutex_);
    const Clock::time_point now = Clock::now();
    for (const ChunkKey& key : keys) tell(key, now);
  }

  // A thread's life.
  void run() {
    become_background_thread("lmkv-lookup");
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return stopping_ || !batches_.empty(); });
      if (stopping_) break;
      const std::shared_ptr<Batch> batch = std::move(batches_.front());
      batches_.pop_front();
      const std::size_t begin = batch->next;
      const std::size_t end = std::min(begin + kSlice, batch->keys.size());
      batch->next = end;
      ++batch->slices_asked;
      if (!batch->taken()) batches_.push_back(batch);  // behind the others': all get on
      const std::span<const ChunkKey> slice(batch->keys.data() + begin, end - begin);
      const auto started = working_since_.insert(Clock::now());
      if (slow_ && !batches_.empty()) work_.notify_one();
      lock.unlock();
      const std::vector<bool> there = filesystem_(slice, batch->until);
      lock.lock();
      slow_ = Clock::now() - *started > kSlowSlice;
      working_since_.erase(started);
      --batch->slices_asked;
      record(*batch, slice, there);
      std::vector<Seen> garbage = std::exchange(garbage_, {});
      if (garbage.empty()) continue;
      lock.unlock();  // to free it takes milliseconds
      garbage.clear();
      lock.lock();
    }
    if (--running_ == 0) ended_.notify_all();
  }

  void start(const std::shared_ptr<Worker>& self) {
    for (unsigned i = 0; i < options_.threads; ++i) {
      ++running_;
      std::thread([self] { self->run(); }).detach();
    }
  }

  // Waits for threads that are about to end; the others keep what they use alive.
  void stop() {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    work_.notify_all();
    ended_.wait_for(lock, options_.given_up_after, [this] { return running_ == 0; });
  }

  void forget() {
    const std::lock_guard lock(mutex_);
    ++generation_;
    garbage_.push_back(std::exchange(recent_, Seen{Clock::now(), {}}));
    garbage_.push_back(std::exchange(older_, Seen{}));
    questions_.clear();
    batches_.clear();
    answered_.notify_all();  // who waits asks anew
  }

  std::uint64_t given_up() const {
    const std::lock_guard lock(mutex_);
    return given_up_;
  }

 private:
  static Clock::time_point after(Seconds patience) {
    const Seconds bounded = std::clamp(patience, Seconds(0), Seconds(3600));  // also of NaN
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(bounded);
  }

  Clock::duration longest_believed() const { return 2 * options_.believed; }

  // All below: with mutex_ held.

  bool remembered(const ChunkKey& key, Clock::time_point now) const {
    return recent_.has(key, now, longest_believed()) || older_.has(key, now, longest_believed());
  }

  // Forgets a half of what is remembered when it is half as old as it may be, or too much.
  void turn_over(Clock::time_point now) {
    if (now - recent_.since <= options_.believed && recent_.keys.size() < options_.remembered / 2) {
      return;
    }
    garbage_.push_back(std::move(older_));
    older_ = std::exchange(recent_, Seen{now, {}});
    std::erase_if(questions_, [&](const auto& entry) {  // answers that nobody came back for
      return entry.second.absent && now - entry.second.at > longest_believed();
    });
  }

  bool hangs(Clock::time_point now) const {
    return !working_since_.empty() && now - *working_since_.begin() > options_.given_up_after;
  }

  Known known(const ChunkKey& key, Clock::time_point now) const {
    if (remembered(key, now)) return Known::kPresent;
    const auto question = questions_.find(key);
    const bool asked = question != questions_.end();
    const auto age = asked ? now - question->second.at : Clock::duration::zero();
    if (asked && !question->second.absent) {
      return age > options_.given_up_after ? Known::kGivenUp : Known::kOpen;
    }
    if (asked && age <= longest_believed()) return Known::kAbsent;
    // Where the filesystem hangs, nothing is asked any more.
    return hangs(now) ? Known::kGivenUp : Known::kUnasked;
  }

  // A final answer: whether it is present. Absence is told once.
  bool tell(const ChunkKey& key, Clock::time_point now) {
    const Known answer = known(key, now);
    if (answer == Known::kAbsent) questions_.erase(key);
    if (answer == Known::kGivenUp) ++given_up_;
    return answer == Known::kPresent;
  }

  void ask(std::span<const ChunkKey> keys, Until until, Clock::time_point now) {
    auto batch = std::make_shared<Batch>();
    batch->until = until;
    batch->generation = generation_;
    for (const ChunkKey& key : keys) {
      if (known(key, now) != Known::kUnasked) continue;
      questions_[key] = Question{now};
      batch->keys.push_back(key);
    }
    if (batch->keys.empty()) return;
    batch->end = batch->keys.size();
    const bool worth_two = batch->keys.size() >= kWorthTwoThreads;
    batches_.push_back(std::move(batch));
    work_.notify_one();
    if (worth_two) work_.notify_one();
  }

  bool wait(std::unique_lock<std::mutex>& lock, Clock::time_point deadline) {
    if (Clock::now() >= deadline) return false;
    answered_.wait_until(lock, deadline);  // a last look at what is known follows in any case
    return true;
  }

  void record(Batch& batch, std::span<const ChunkKey> slice, const std::vector<bool>& there) {
    if (batch.generation != generation_) return;
    const Clock::time_point now = Clock::now();
    turn_over(now);
    for (std::size_t i = 0; i < slice.size(); ++i) {
      if (i >= there.size()) {
        questions_.erase(slice[i]);  // who still waits for it asks anew
      } else if (there[i]) {
        questions_.erase(slice[i]);
        recent_.keys.insert(slice[i]);
      } else if (const auto question = questions_.find(slice[i]); question != questions_.end()) {
        question->second = Question{now, true};
      }
    }
    if (batch.until == Until::kFirstAbsent && !there.empty() && !there.back()) {
      // What lies behind the hole is of no use, absence least of all: nobody would come for it.
      const auto hole = static_cast<std::size_t>(slice.data() - batch.keys.data()) + there.size();
      batch.end = std::min(batch.end, hole);
      if (!batch.taken()) {
        std::erase_if(batches_, [&](const auto& other) { return other.get() == &batch; });
        batch.next = batch.keys.size();
      }
    }
    for (std::size_t i = batch.end; i < batch.keys.size(); ++i) questions_.erase(batch.keys[i]);
    // Not after every slice: who waits would only wake up to wait for the next. But a hole may be
    // all that somebody waits for, whatever still lies behind it.
    const bool has_hole = batch.end < batch.keys.size();
    if (has_hole || (batch.taken() && batch.slices_asked == 0)) answered_.notify_all();
  }

  const Ask filesystem_;
  const LookupOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable answered_;
  std::condition_variable ended_;
  std::deque<std::shared_ptr<Batch>> batches_;  // invariant: none is taken
  std::unordered_map<ChunkKey, Question, ChunkKeyHash> questions_;
  Seen recent_;
  Seen older_;
  std::vector<Seen> garbage_;                       // for our own threads to free
  std::multiset<Clock::time_point> working_since_;  // of threads that are in a system call
  std::uint64_t generation_ = 0;
  std::uint64_t given_up_ = 0;
  unsigned running_ = 0;
  bool slow_ = false;  // as the last slice was
  bool stopping_ = false;
};

LookupService::LookupService(Ask filesystem, const LookupOptions& options)
    : worker_(std::make_shared<Worker>(std::move(filesystem), options)) {
  worker_->start(worker_);
}

LookupService::~LookupService() { worker_->stop(); }

std::optional<std::size_t> LookupService::lookup(std::span<const ChunkKey> keys, Seconds patience,
                                                 Absence absence) {
  return worker_->lookup(keys, patience, absence);
}

std::optional<std::vector<bool>> LookupService::present(std::span<const ChunkKey> keys,
                                                        Seconds patience, Absence absence) {
  return worker_->present(keys, patience, absence);
}

void LookupService::told(std::span<const ChunkKey> keys) { worker_->told(keys); }

void LookupService::forget() { worker_->forget(); }

std::uint64_t LookupService::given_up() const { return worker_->given_up(); }

}  // namespace lmkv
