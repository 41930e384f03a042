// When a chunk was last used, as its file's modification time says it (docs/decisions/0007).
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace lmkv {

using UseTime = std::chrono::system_clock::time_point;

// Within one tick all uses of a chunk get the same stamp, so that only the first of them changes
// the file: a chunk in use changes more often than eviction spares files that changed a moment ago
// (HousekeepingOptions::spared). Within a tick the deeper of two chunks has the older stamp.
inline constexpr std::chrono::seconds kUseTick{2};
inline constexpr std::chrono::microseconds kUsePerToken{1};

// Nanoseconds since the epoch. `used_at`: when the request began that uses the chunk, the same time
// for all its chunks: then a prefix's head is newer than its tail whenever each is written
// (architecture.md, invariant 9). `token_begin`: the chunk's place in the prompt.
[[nodiscard]] inline std::int64_t use_stamp(UseTime used_at, std::uint64_t token_begin,
                                            UseTime now = std::chrono::system_clock::now()) {
  const UseTime used = std::min(used_at, now);
  const auto tick = std::chrono::floor<std::chrono::duration<std::int64_t, std::ratio<2>>>(used)
                        .time_since_epoch();
  static_assert(decltype(tick)(1) == kUseTick);
  // Deepest: less than a tick, so that no chunk is older than one of the tick before.
  constexpr std::uint64_t kDeepest = kUseTick / kUsePerToken - 1;
  const auto depth = static_cast<std::int64_t>(std::min(token_begin, kDeepest)) *
                     std::chrono::nanoseconds(kUsePerToken);
  return (std::chrono::nanoseconds(tick) - depth).count();
}

}  // namespace lmkv
