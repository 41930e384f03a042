// What a directory's filesystem can do, found by trying.
#pragma once

#include <string>

#include "io/direct_file.hpp"

namespace lmkv {

enum class DirectIoChoice { kAuto, kOn, kOff };
// Whether several hosts have the filesystem mounted; kAuto: by its kind (io/filesystem_kind.hpp).
enum class SharedChoice { kAuto, kShared, kLocal };

struct RootProbe {
  std::string filesystem;  // as FilesystemKind::name
  MountPlace place;
  Caching caching = Caching::kBuffered;
  Publish publish = Publish::kRename;
  Submission submission = Submission::kReturns;
  std::string shared_reason;  // why this publish
  std::string reason;         // why this caching

  // Another host may read a file right after its rename, and a server say only at fsync or close
  // that it has no room: data is there before the file has its name.
  [[nodiscard]] bool is_shared() const { return publish == Publish::kSyncThenRename; }

  // Whether it is across a network, or may be, however it is published: a server that was away may
  // answer long after whoever asked has died.
  bool is_remote = false;
};

// Writes a page to a new file in `directory`, reads it back and removes it; directly if `choice`
// lets it and the filesystem takes it. Blocks on the disk: start-up only. Throws std::runtime_error
// when the directory cannot be used at all, or not with O_DIRECT though `choice` is kOn.
RootProbe probe_root(const std::string& directory, DirectIoChoice choice,
                     SharedChoice shared = SharedChoice::kAuto);

}  // namespace lmkv
