// What is known of a chunk's uses, as its file's modification time says it (docs/decisions/0007).
//
// Of 2026-11-24T10:00:02.000000000, a tick, a chunk from token 256 on that was used twice carries
// 10:00:01.999744 and, in the three digits of nanoseconds behind that, the number of its uses.
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
// Uses after the first, ticks with several as one, are counted up to here.
inline constexpr unsigned kMostUses = 15;

// What a stamp says.
struct Use {
  std::int64_t last_ns = 0;  // of the last use, since the epoch: a whole tick
  std::uint64_t token_begin = 0;
  unsigned again = 0;  // times that it was used after it had been stored
};

namespace stamp {

inline constexpr std::int64_t kTickNs = std::chrono::nanoseconds(kUseTick).count();
inline constexpr std::int64_t kMicrosecond = 1000;

[[nodiscard]] inline std::int64_t whole_microseconds(std::int64_t modified_ns) {
  const std::int64_t rest = modified_ns % kMicrosecond;
  return modified_ns - (rest < 0 ? rest + kMicrosecond : rest);
}

// Of the last three digits, with five bits that hardly any other writer's time has. Filesystems
// with coarser times lose both, and then nothing was used again.
[[nodiscard]] inline std::int64_t digits(std::int64_t microseconds_ns, unsigned again) {
  const auto mixed = static_cast<std::uint64_t>(microseconds_ns / kMicrosecond + again + 1) *
                     0x9E3779B97F4A7C15ULL;
  return static_cast<std::int64_t>((mixed >> 59) << 4 | again);
}

[[nodiscard]] inline std::int64_t with_uses(std::int64_t microseconds_ns, unsigned again) {
  return microseconds_ns + digits(microseconds_ns, again);
}

}  // namespace stamp

// Nanoseconds since the epoch, for a file that is new. `used_at`: when the request began that uses
// the chunk, the same time for all its chunks: then a prefix's head is newer than its tail whenever
// each is written (architecture.md, invariant 9). `token_begin`: the chunk's place in the prompt.
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
  return stamp::with_uses((std::chrono::nanoseconds(tick) - depth).count(), 0);
}

// Of any file; one that lmkv did not stamp was used when it was written, and not again.
[[nodiscard]] inline Use use_of(std::int64_t modified_ns) {
  const std::int64_t micro = stamp::whole_microseconds(modified_ns);
  const auto again = static_cast<unsigned>((modified_ns - micro) & 15);
  const bool counted = stamp::with_uses(micro, again) == modified_ns;
  std::int64_t depth_ns = -(micro % stamp::kTickNs);  // up to the end of its tick
  if (depth_ns < 0) depth_ns += stamp::kTickNs;
  return {micro + depth_ns, static_cast<std::uint64_t>(depth_ns / stamp::kMicrosecond),
          counted ? again : 0};
}

// What a file gets that has `found_ns` and is used again, by `stamp_ns` of use_stamp(): `found_ns`
// if it carries that use, or a later one, already. Never older.
[[nodiscard]] inline std::int64_t renewed(std::int64_t found_ns, std::int64_t stamp_ns) {
  const std::int64_t micro = stamp::whole_microseconds(stamp_ns);
  if (stamp::whole_microseconds(found_ns) >= micro) return found_ns;
  return stamp::with_uses(micro, std::min(use_of(found_ns).again + 1, kMostUses));
}

}  // namespace lmkv
