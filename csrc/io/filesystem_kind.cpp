#include "io/filesystem_kind.hpp"

#include <linux/magic.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>

namespace lmkv {
namespace {

enum class Reach { kThisHost, kSeveralHosts };

struct Known {
  const char* name;
  Reach reach;
};

constexpr std::uint32_t kFuse = 0x65735546;

// Magic numbers that <linux/magic.h> of older distributions lacks are written out.
const std::map<std::uint32_t, Known>& known_filesystems() {
  static const std::map<std::uint32_t, Known> table = {
      {EXT4_SUPER_MAGIC, {"ext4", Reach::kThisHost}},
      {0x58465342, {"xfs", Reach::kThisHost}},
      {BTRFS_SUPER_MAGIC, {"btrfs", Reach::kThisHost}},
      {0xCA451A4E, {"bcachefs", Reach::kThisHost}},
      {0xF2F52010, {"f2fs", Reach::kThisHost}},
      {0x2FC12FC1, {"zfs", Reach::kThisHost}},
      {TMPFS_MAGIC, {"tmpfs", Reach::kThisHost}},
      {OVERLAYFS_SUPER_MAGIC, {"overlayfs", Reach::kThisHost}},
      {NFS_SUPER_MAGIC, {"nfs", Reach::kSeveralHosts}},
      {0xFF534D42, {"cifs", Reach::kSeveralHosts}},
      {0xFE534D42, {"smb", Reach::kSeveralHosts}},
      {0x00C36400, {"ceph", Reach::kSeveralHosts}},
      {0x0BD00BD0, {"lustre", Reach::kSeveralHosts}},
      {0x47504653, {"gpfs", Reach::kSeveralHosts}},
      {0x19830326, {"beegfs", Reach::kSeveralHosts}},
      {0x20030528, {"orangefs", Reach::kSeveralHosts}},
      {0x01161970, {"gfs2", Reach::kSeveralHosts}},
      {0x7461636F, {"ocfs2", Reach::kSeveralHosts}},
      {0x5346414F, {"afs", Reach::kSeveralHosts}},
      {0x01021997, {"9p", Reach::kSeveralHosts}},
      {kFuse, {"fuse", Reach::kSeveralHosts}},
  };
  return table;
}

// "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw" (proc_pid_mountinfo(5)): the word
// behind the dash, of the first mount of this device. Empty if there is none.
std::string mounted_as(const FilesystemId& id, const std::string& mounts) {
  const std::string wanted = std::to_string(id.major) + ":" + std::to_string(id.minor);
  std::ifstream lines(mounts);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string number;
    std::string parent;
    std::string device;
    words >> number >> parent >> device;
    const std::size_t dash = line.find(" - ");
    if (device != wanted || dash == std::string::npos) continue;
    std::string type;
    std::istringstream(line.substr(dash + 3)) >> type;
    return type;
  }
  return {};
}

std::string hex(std::uint32_t magic) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%08x", magic);
  return text.data();
}

}  // namespace

FilesystemKind filesystem_kind(std::uint32_t magic, const FilesystemId& id,
                               const std::string& mounts) {
  const auto found = known_filesystems().find(magic);
  if (found == known_filesystems().end()) {
    return {hex(magic), true, "unknown, so that it may be another host's", false};
  }
  const auto& [name, reach] = found->second;
  FilesystemKind kind{name, reach == Reach::kSeveralHosts, "", false};
  kind.is_fuse = magic == kFuse;
  if (kind.is_fuse || magic == NFS_SUPER_MAGIC) {
    if (const std::string type = mounted_as(id, mounts); !type.empty()) kind.name = type;
    if (kind.name == "fuseblk") kind.is_shared = false;  // of a disk of this host's
  }
  if (!kind.is_shared) {
    kind.reason = kind.name + " is this host's alone";
  } else if (kind.is_fuse) {
    kind.reason = kind.name + " may be another host's";
  } else {
    kind.reason = kind.name + " is a network or cluster filesystem";
  }
  return kind;
}

}  // namespace lmkv
