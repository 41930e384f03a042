#include "common/access.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace lmkv {

int set_directory_mode(int parent, const char* name, mode_t mode) {
  const UniqueFd opened(::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  return opened.get() < 0 ? -1 : ::fchmod(opened.get(), mode);
}

int make_directory(int parent, const char* name, Access access) {
  const mode_t mode = directory_mode_of(access);
  if (::mkdirat(parent, name, mode) != 0) return -1;
  return access == Access::kGroup ? set_directory_mode(parent, name, mode) : 0;
}

UniqueFd create_file(int directory, const char* name, Access access) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  const mode_t mode = file_mode_of(access);
  UniqueFd file(::openat(directory, name, kFlags, mode));
  if (file.get() < 0 || access == Access::kPrivate) return file;
  if (::fchmod(file.get(), mode) == 0) return file;
  const int error = errno;
  ::unlinkat(directory, name, 0);
  errno = error;
  return UniqueFd();
}

}  // namespace lmkv
