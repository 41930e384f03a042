// For how long at least one operation of a kind was under way: bytes over it are a rate.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace lmkv {

// Any thread.
class BusyTime {
 public:
  using Clock = std::chrono::steady_clock;

  void begin() {
    const std::lock_guard lock(mutex_);
    if (under_way_++ == 0) since_ = Clock::now();
  }

  void end() {
    const std::lock_guard lock(mutex_);
    if (--under_way_ == 0) total_ += Clock::now() - since_;
  }

  [[nodiscard]] bool is_busy() const {
    const std::lock_guard lock(mutex_);
    return under_way_ > 0;
  }

  // What is under way now counts up to this moment, so that the value never goes back.
  [[nodiscard]] std::uint64_t microseconds() const {
    const std::lock_guard lock(mutex_);
    Clock::duration all = total_;
    if (under_way_ > 0) all += Clock::now() - since_;
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(all).count());
  }

 private:
  mutable std::mutex mutex_;
  std::size_t under_way_ = 0;
  Clock::time_point since_;
  Clock::duration total_{0};
};

}  // namespace lmkv
