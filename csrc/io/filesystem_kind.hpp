// What kind of filesystem a directory is on.
#pragma once

#include <cstdint>
#include <string>

#include "io/direct_file.hpp"

namespace lmkv {

struct FilesystemKind {
  std::string name;        // "ext4", "nfs4", "fuse.sshfs", or the magic number in hex
  bool is_shared = false;  // several hosts may have it mounted
  std::string reason;      // why that is so, or is taken to be so; in words
  bool is_fuse = false;    // a process of this host's serves it
};

// By statfs(2)'s `magic`. Where that stands for several kinds, the table of mounts says which; it
// is read from `mounts`. Blocks on neither.
[[nodiscard]] FilesystemKind filesystem_kind(std::uint32_t magic, const FilesystemId& id,
                                             const std::string& mounts = "/proc/self/mountinfo");

}  // namespace lmkv
