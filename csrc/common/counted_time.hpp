// How long a scope took, added to a counter.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace lmkv {

// Of several threads at once the counter sums their times.
class CountedTime {
 public:
  explicit CountedTime(std::atomic<std::uint64_t>& nanoseconds) : nanoseconds_(nanoseconds) {}
  CountedTime(const CountedTime&) = delete;
  CountedTime& operator=(const CountedTime&) = delete;
  ~CountedTime() {
    const auto took = std::chrono::steady_clock::now() - begun_;
    nanoseconds_.fetch_add(static_cast<std::uint64_t>(
                               std::chrono::duration_cast<std::chrono::nanoseconds>(took).count()),
                           std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint64_t>& nanoseconds_;
  const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
};

}  // namespace lmkv
