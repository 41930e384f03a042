#include "io/fault_engine.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "common/background_thread.hpp"
#include "common/types.hpp"

namespace lmkv {
namespace {

using Clock = std::chrono::steady_clock;

// Fails by itself and harmlessly: it carries an invented result to an I/O thread.
Operation nothing() {
  Operation op;
  op.kind = OperationKind::kClose;
  return op;
}

// Where a kernel may end a request early: O_DIRECT moves whole pages, but for the end of a file.
std::size_t granule_of(const Operation& op) {
  const int flags = ::fcntl(op.descriptor, F_GETFL);
  return flags >= 0 && (flags & O_DIRECT) != 0 ? kPageBytes : 1;
}

// How many granules a request may lose and still have moved something less than it was asked for.
std::size_t granules_before_end(const Operation& op, std::size_t granule) {
  return op.length == 0 ? 0 : (op.length - 1) / granule;
}

void flip_a_bit(std::byte* bytes, std::size_t count, std::uint64_t number) {
  bytes[number / 8 % count] ^= std::byte{1} << static_cast<int>(number % 8);
}

struct FreeMemory {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using PageMemory = std::unique_ptr<std::byte, FreeMemory>;

PageMemory copy_of(const Operation& op) {
  void* const memory = std::aligned_alloc(kPageBytes, round_up_to_page(op.length));
  if (memory == nullptr) throw std::bad_alloc();
  PageMemory copy(static_cast<std::byte*>(memory));
  std::copy_n(op.buffer, op.length, copy.get());
  return copy;
}

}  // namespace

Faults::Faults(FaultSpec spec, std::uint64_t seed) : spec_(std::move(spec)), random_(seed) {}

void Faults::change(FaultSpec spec) {
  const std::lock_guard lock(mutex_);
  spec_ = std::move(spec);
}

void Faults::release() {
  {
    const std::lock_guard lock(mutex_);
    ++releases_;
  }
  wake_.notify_all();
}

std::uint64_t Faults::releases() const {
  const std::lock_guard lock(mutex_);
  return releases_;
}

std::size_t Faults::hanging() const {
  const std::lock_guard lock(mutex_);
  return hanging_;
}

std::map<std::string, std::uint64_t> Faults::counts() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, std::uint64_t> named;
  for (const auto& [where, count] : counts_) {
    named[std::string(name_of(where.first)) + "." + std::string(name_of(where.second))] = count;
  }
  return named;
}

std::uint64_t Faults::count(FaultKind kind) const {
  const std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& [where, count] : counts_) {
    if (where.second == kind) sum += count;
  }
  return sum;
}

Faults::Draw Faults::draw(const Operation& operation) {
  const std::lock_guard lock(mutex_);
  Draw drawn;
  for (const Fault& fault : spec_) {
    std::optional<Fault>& slot = is_timing(fault.kind) ? drawn.timing : drawn.outcome;
    if (slot || !fault.can_happen_to(operation)) continue;
    if (std::uniform_real_distribution<>(0, 1)(random_) < fault.rate) slot = fault;
  }
  drawn.number = random_();
  return drawn;
}

void Faults::note(const Operation& operation, FaultKind kind) {
  const std::lock_guard lock(mutex_);
  ++counts_[{operation.kind, kind}];
}

class FaultEngine final : public IoEngine {
 public:
  FaultEngine(std::unique_ptr<IoEngine> real, std::shared_ptr<Faults> faults)
      : faults_(std::move(faults)),
        releases_seen_(faults_->releases()),
        owned_(std::move(real)),
        real_(owned_.get()),
        timer_([this] { keep_time(); }) {}

  ~FaultEngine() override {
    {
      const std::lock_guard lock(faults_->mutex_);
      stopping_ = true;
    }
    faults_->wake_.notify_all();
    timer_.join();
    // Handlers that it still runs submit here, and are passed on: by now nothing is held back.
    owned_.reset();
  }

  void submit(Operation& operation) override {
    // No kernel's business: it is between two tries of an operation that has its faults.
    if (operation.kind == OperationKind::kPause || operation.kind == OperationKind::kDefer) {
      return real_->submit(operation);
    }
    const Faults::Draw drawn = faults_->draw(operation);
    auto call = std::make_unique<Call>(*faults_, operation, drawn.number);
    if (drawn.outcome && call->suffer(drawn.outcome->kind)) {
      faults_->note(operation, drawn.outcome->kind);
    }
    if (drawn.timing && hold(*call, *drawn.timing)) {
      static_cast<void>(call.release());  // it is the timer's
      return;
    }
    real_->submit(call.release()->forwarded);  // owns itself until on_complete
  }

  std::string register_memory(const SlabMemory& memory) override {
    return real_->register_memory(memory);
  }
  [[nodiscard]] std::string_view name() const override { return real_->name(); }
  [[nodiscard]] std::map<std::string, std::string> info() const override { return real_->info(); }

 private:
  struct Call final : OperationHandler {
    Call(Faults& all, Operation& submitted, std::uint64_t drawn)
        : faults(all), original(submitted), forwarded(submitted), number(drawn) {
      forwarded.handler = this;
    }

    // False where the fault cannot happen after all.
    bool suffer(FaultKind kind) {
      switch (kind) {
        case FaultKind::kShort: return shorten();
        case FaultKind::kTruncate: return truncate();
        case FaultKind::kCorrupt: return corrupt();
        default: break;
      }
      if (is_lost(kind)) {
        lost = kind;
        return false;  // noted when it was executed
      }
      instead = -errno_of(kind, original.kind);
      if (original.kind != OperationKind::kClose) execute_nothing();
      return true;
    }

    void on_complete(Operation&, int result) override {
      const std::unique_ptr<Call> self(this);
      if (flips_what_is_read && result > 0) {
        flip_a_bit(original.buffer, static_cast<std::size_t>(result), number);
        faults.note(original, FaultKind::kCorrupt);
      }
      if (lost && result >= 0) {
        if (original.kind == OperationKind::kOpen) ::close(result);  // nobody else knows of it
        faults.note(original, *lost);
        instead = -errno_of(*lost, original.kind);
      }
      const bool lies = instead && (!executed || *instead < 0 || result >= 0);
      original.handler->on_complete(original, lies ? *instead : result);
    }

    Faults& faults;  // outlived by the engine, and that by us
    Operation& original;
    Operation forwarded;
    const std::uint64_t number;
    bool executed = true;
    std::optional<int> instead;  // of the result; a good one does not hide a real failure
    bool flips_what_is_read = false;
    std::optional<FaultKind> lost;
    PageMemory copy;  // of what is written

   private:
    void execute_nothing() {
      executed = false;
      forwarded = nothing();
      forwarded.handler = this;
    }

    bool shorten() {
      const std::size_t granule = granule_of(original);
      const std::size_t most = granules_before_end(original, granule);
      if (most == 0) return false;
      forwarded.length = granule * (1 + number % most);
      return true;
    }

    bool truncate() {
      if (original.kind == OperationKind::kRead) {
        instead = 0;
        execute_nothing();
        return true;
      }
      const std::size_t granule = granule_of(original);
      forwarded.length = granule * (number % (granules_before_end(original, granule) + 1));
      instead = static_cast<int>(original.length);
      if (forwarded.length == 0) execute_nothing();
      return true;
    }

    bool corrupt() {
      if (original.length == 0) return false;
      if (original.kind == OperationKind::kRead) {
        flips_what_is_read = true;
        return false;  // noted when something was read
      }
      copy = copy_of(original);
      flip_a_bit(copy.get(), original.length, number);
      forwarded.buffer = copy.get();
      return true;
    }
  };

  bool hold(Call& call, const Fault& fault) {
    {
      const std::lock_guard lock(faults_->mutex_);
      if (stopping_) return false;
      ++faults_->counts_[{call.original.kind, fault.kind}];
      if (fault.kind == FaultKind::kHang) {
        hanging_.push_back(&call);
        ++faults_->hanging_;
        return true;
      }
      auto time = fault.time;
      if (fault.kind == FaultKind::kReorder) {
        time =
            std::chrono::microseconds(call.number % (static_cast<std::uint64_t>(time.count()) + 1));
      }
      delayed_.emplace(Clock::now() + time, &call);
    }
    faults_->wake_.notify_all();
    return true;
  }

  void keep_time() {
    become_background_thread("lmkv-faults");
    std::unique_lock lock(faults_->mutex_);
    for (;;) {
      const bool stopping = stopping_;
      std::vector<Call*> due;
      if (stopping || releases_seen_ != faults_->releases_) {
        releases_seen_ = faults_->releases_;
        faults_->hanging_ -= hanging_.size();
        due.swap(hanging_);
      }
      while (!delayed_.empty() && (stopping || delayed_.begin()->first <= Clock::now())) {
        due.push_back(delayed_.begin()->second);
        delayed_.erase(delayed_.begin());
      }
      if (!due.empty()) {
        lock.unlock();
        for (Call* call : due) real_->submit(call->forwarded);
        lock.lock();
        continue;
      }
      if (stopping) return;
      if (delayed_.empty()) {
        faults_->wake_.wait(lock);
      } else {
        const Clock::time_point next = delayed_.begin()->first;
        faults_->wake_.wait_until(lock, next);
      }
    }
  }

  const std::shared_ptr<Faults> faults_;
  std::uint64_t releases_seen_;  // guarded by faults_->mutex_, as the three below
  std::multimap<Clock::time_point, Call*> delayed_;
  std::vector<Call*> hanging_;
  bool stopping_ = false;
  std::unique_ptr<IoEngine> owned_;
  IoEngine* const real_;  // the same, also while that is being destroyed
  std::thread timer_;
};

std::unique_ptr<IoEngine> make_fault_engine(std::unique_ptr<IoEngine> real,
                                            std::shared_ptr<Faults> faults) {
  return std::make_unique<FaultEngine>(std::move(real), std::move(faults));
}

}  // namespace lmkv
