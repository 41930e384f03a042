// What a directory's filesystem can do, found by trying.
#pragma once

#include <string>

#include "io/direct_file.hpp"

namespace lmkv {

enum class DirectIoChoice { kAuto, kOn, kOff };

struct RootProbe {
  std::string filesystem;  // "ext4", "nfs", "fuse", or the magic number in hex
  MountPlace place;
  Caching caching = Caching::kBuffered;
  Publish publish = Publish::kRename;
  Submission submission = Submission::kReturns;
  std::string reason;  // why this caching
};

// Writes a page to a new file in `directory`, reads it back and removes it; directly if `choice`
// lets it and the filesystem takes it. Blocks on the disk: start-up only. Throws std::runtime_error
// when the directory cannot be used at all, or not with O_DIRECT though `choice` is kOn.
RootProbe probe_root(const std::string& directory, DirectIoChoice choice);

}  // namespace lmkv
