// Opens directories below one that is open, following no symbolic link on the way.
#pragma once

#include <fcntl.h>

#include <string_view>

#include "common/unique_fd.hpp"

namespace lmkv {

// As a place for the ...at() calls: it needs no permission to read the directory.
inline constexpr int kEnterFlags = O_PATH | O_DIRECTORY | O_CLOEXEC;

// The directory at `path`, relative to `directory` (to the working directory never); a descriptor,
// or -1 with errno: ELOOP where a link is in its place or on the way. Blocks on the disk.
[[nodiscard]] int enter_below(int directory, const char* path);

// The same, one part of the path after the other: for kernels and seccomp profiles without openat2.
[[nodiscard]] int enter_step_by_step(int directory, std::string_view path);

// `path` is absolute and below `root`, or the root itself, which may be or lie behind links.
[[nodiscard]] UniqueFd enter(std::string_view root, std::string_view path);

}  // namespace lmkv
