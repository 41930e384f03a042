#include "common/access.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace lmkv {

int set_directory_mode(const std::string& path, mode_t mode) {
  const UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  return directory.get() < 0 ? -1 : ::fchmod(directory.get(), mode);
}

int make_directory(const std::string& path, Access access) {
  const mode_t mode = directory_mode_of(access);
  if (::mkdir(path.c_str(), mode) != 0) return -1;
  return access == Access::kGroup ? set_directory_mode(path, mode) : 0;
}

UniqueFd create_file(const std::string& path, Access access) {
  const mode_t mode = file_mode_of(access);
  UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  if (file.get() < 0 || access == Access::kPrivate) return file;
  if (::fchmod(file.get(), mode) == 0) return file;
  const int error = errno;
  ::unlink(path.c_str());
  errno = error;
  return UniqueFd();
}

}  // namespace lmkv
