#include "store/file_times.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include "common/enter.hpp"
#include "common/posix.hpp"
#include "common/unique_fd.hpp"

namespace lmkv {

// By touching a directory of our own: that works on a full disk, too, and leaves nothing behind.
std::int64_t filesystem_now_ns(const ChunkPaths& paths) {
  constexpr int kFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  const UniqueFd place = enter(paths.root(), paths.rank_directory());
  const UniqueFd directory(::openat(place.get(), ".", kFlags));
  struct stat status{};
  if (directory.get() < 0 || ::futimens(directory.get(), nullptr) != 0 ||
      ::fstat(directory.get(), &status) != 0) {
    return system_now_ns();
  }
  return nanoseconds(status.st_ctim);
}

}  // namespace lmkv
