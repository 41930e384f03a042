// Who may use what is created below a root.
#pragma once

#include <sys/types.h>

#include "common/unique_fd.hpp"

namespace lmkv {

// kGroup: engines of several users share. They replace, renew and remove each other's files, for
// which reading is not enough; and a new directory's files are of its group (setgid), whoever makes
// them.
enum class Access { kPrivate, kGroup };

[[nodiscard]] constexpr mode_t file_mode_of(Access access) {
  return access == Access::kGroup ? 0660 : 0600;
}
[[nodiscard]] constexpr mode_t directory_mode_of(Access access) {
  return access == Access::kGroup ? 02770 : 0700;
}

// For threads that may block on the disk. The group's modes are set whatever the umask is.

// As mkdirat(2).
[[nodiscard]] int make_directory(int parent, const char* name, Access access);
// Sets a directory's mode, unless a link is in its place. 0, or -1 with errno.
[[nodiscard]] int set_directory_mode(int parent, const char* name, mode_t mode);
// Opens a file for writing that was not there (O_EXCL); -1 with errno if it cannot.
[[nodiscard]] UniqueFd create_file(int directory, const char* name, Access access);

}  // namespace lmkv
