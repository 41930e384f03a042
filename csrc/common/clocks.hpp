// How far clocks are believed.
#pragma once

#include <chrono>
#include <cstdint>

namespace lmkv {

// Clocks of hosts that share a root differ by less. What says more was made by a wrong one.
inline constexpr std::chrono::nanoseconds kClocksDiffer = std::chrono::hours(1);

// Nanoseconds since the epoch (common/posix.hpp).
[[nodiscard]] constexpr bool is_of_the_future(std::int64_t time_ns, std::int64_t now_ns) {
  return time_ns > now_ns + kClocksDiffer.count();
}

}  // namespace lmkv
