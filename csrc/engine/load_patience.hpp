// How long a load may take before it is given up and its tokens are computed.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace lmkv {

// A fixed time, or: eight times what all the bytes that are to be read before it ends would take at
// the rate that reads have had lately, from 5 s to a minute; 30 s before anything was read. It is
// there for a directory that hangs, not for one that is slow. Thread-safe.
class LoadPatience {
 public:
  using Clock = std::chrono::steady_clock;

  // Zero: by the rate.
  explicit LoadPatience(std::chrono::duration<double> fixed)
      : fixed_(std::chrono::duration_cast<Clock::duration>(fixed)) {}

  // Totals since start: bytes that were read, and for how long reads were under way.
  void observe(std::uint64_t bytes, std::uint64_t busy_microseconds) {
    const std::uint64_t new_bytes = bytes - seen_bytes_.load(std::memory_order_relaxed);
    const std::uint64_t new_time = busy_microseconds - seen_time_.load(std::memory_order_relaxed);
    if (new_time < kWindow || new_bytes == 0) return;
    seen_bytes_.store(bytes, std::memory_order_relaxed);
    seen_time_.store(busy_microseconds, std::memory_order_relaxed);
    const double lately = static_cast<double>(new_bytes) / static_cast<double>(new_time);
    const double before = rate_.load(std::memory_order_relaxed);
    rate_.store(before == 0 ? lately : (before + lately) / 2, std::memory_order_relaxed);
  }

  // For a load that ends when `bytes` have been read.
  [[nodiscard]] Clock::duration of(std::uint64_t bytes) const {
    if (fixed_ != Clock::duration{0}) return fixed_;
    const double rate = rate_.load(std::memory_order_relaxed);
    if (rate == 0) return kBeforeAnything;
    const std::chrono::duration<double, std::micro> expected(static_cast<double>(bytes) / rate);
    const std::chrono::duration<double> longest = kLongest;
    return std::max<Clock::duration>(
        kShortest, std::chrono::duration_cast<Clock::duration>(
                       std::min<std::chrono::duration<double>>(longest, kMargin * expected)));
  }

 private:
  static constexpr double kMargin = 8;
  static constexpr std::chrono::seconds kShortest{5};
  static constexpr std::chrono::seconds kLongest{60};
  static constexpr std::chrono::seconds kBeforeAnything{30};
  static constexpr std::uint64_t kWindow = 100'000;  // microseconds

  const Clock::duration fixed_;
  // One caller's update may be lost to another's: both are right.
  std::atomic<std::uint64_t> seen_bytes_{0};
  std::atomic<std::uint64_t> seen_time_{0};
  std::atomic<double> rate_{0};  // bytes a microsecond
};

}  // namespace lmkv
