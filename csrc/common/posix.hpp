// What several files read out of the kernel's answers.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <ctime>

namespace lmkv {

// Since the epoch. A file may say any time at all: beyond the years 1827 and 2112 it is one of
// these, so that two of them can be subtracted.
[[nodiscard]] inline std::int64_t nanoseconds(std::int64_t seconds, std::int64_t more) {
  constexpr std::int64_t kFurthest = 4'500'000'000;
  return std::clamp(seconds, -kFurthest, kFurthest) * 1'000'000'000 + more;
}
[[nodiscard]] inline std::int64_t nanoseconds(const timespec& time) {
  return nanoseconds(time.tv_sec, time.tv_nsec);
}

[[nodiscard]] inline std::int64_t nanoseconds(const struct statx_timestamp& time) {
  return nanoseconds(time.tv_sec, time.tv_nsec);
}

// Links are not followed. A network filesystem asks its server: otherwise its client may answer
// from what it knew a minute ago (nfs(5), "attribute caching"). False with errno.
[[nodiscard]] inline bool stat_afresh(int directory, const char* name, struct statx& found) {
  constexpr int kFlags = AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC;
  return ::statx(directory, name, kFlags, STATX_BASIC_STATS, &found) == 0;
}

[[nodiscard]] inline std::int64_t system_now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return nanoseconds(now);
}

// A name that is gone, a parent that is gone, or an NFS handle whose file is gone.
[[nodiscard]] inline bool is_gone(int error) {
  return error == ENOENT || error == ENOTDIR || error == ESTALE;
}

// A bad sector, or a filesystem whose own checksum fails: it would fail the next time as well.
[[nodiscard]] inline bool is_damaged(int error) {
  return error == EIO || error == EBADMSG || error == EUCLEAN;
}

}  // namespace lmkv
