#include "common/enter.hpp"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#if defined(SYS_openat2) && __has_include(<linux/openat2.h>)
#include <linux/openat2.h>
#endif

namespace lmkv {
namespace {

// O_DIRECTORY says ENOTDIR of a link as of a file.
void tell_links_apart(int directory, const char* name) {
  struct stat status{};
  if (errno != ENOTDIR) return;
  const bool is_link =
      ::fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(status.st_mode);
  errno = is_link ? ELOOP : ENOTDIR;
}

}  // namespace

int enter_below(int directory, const char* path) {
#ifdef RESOLVE_NO_SYMLINKS
  open_how how{};
  how.flags = kEnterFlags;
  how.resolve = RESOLVE_NO_SYMLINKS;
  const long opened = ::syscall(SYS_openat2, directory, path, &how, sizeof how);
  if (opened >= 0 || (errno != ENOSYS && errno != EPERM)) return static_cast<int>(opened);
#endif
  return enter_step_by_step(directory, path);
}

int enter_step_by_step(int directory, std::string_view path) {
  UniqueFd opened;
  while (!path.empty()) {
    const std::string name(path.substr(0, path.find('/')));
    path.remove_prefix(std::min(path.size(), name.size() + 1));
    const int parent = opened.get() < 0 ? directory : opened.get();
    UniqueFd next(::openat(parent, name.c_str(), kEnterFlags | O_NOFOLLOW));
    if (next.get() < 0) {
      tell_links_apart(parent, name.c_str());
      return -1;
    }
    opened = std::move(next);
  }
  return opened.release();
}

UniqueFd enter(std::string_view root, std::string_view path) {
  UniqueFd directory(::open(std::string(root).c_str(), kEnterFlags));
  if (directory.get() < 0 || path.size() <= root.size() + 1) return directory;
  const std::string below(path.substr(root.size() + 1));
  return UniqueFd(enter_below(directory.get(), below.c_str()));
}

}  // namespace lmkv
