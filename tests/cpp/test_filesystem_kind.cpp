#include <gtest/gtest.h>
#include <linux/magic.h>

#include <string>

#include "io/filesystem_kind.hpp"
#include "io/root_probe.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

constexpr std::uint32_t kFuse = 0x65735546;

class FilesystemKindTest : public ::testing::Test {
 protected:
  FilesystemKind kind(std::uint32_t magic, const FilesystemId& id = {0, 99}) {
    return filesystem_kind(magic, id, mounts);
  }
  void write_mounts(const std::string& text) {
    test::write_file(mounts, std::as_bytes(std::span(text)));
  }

  test::TemporaryDirectory directory;
  const std::string mounts = directory / "mountinfo";
};

TEST_F(FilesystemKindTest, DisksOfThisHostAreNotSharedAndTheNetworksAre) {
  for (const std::uint32_t magic : {std::uint32_t{EXT4_SUPER_MAGIC}, std::uint32_t{0x58465342},
                                    std::uint32_t{TMPFS_MAGIC}, std::uint32_t{0x2FC12FC1}}) {
    EXPECT_FALSE(kind(magic).is_shared) << kind(magic).name;
  }
  for (const std::uint32_t magic :
       {std::uint32_t{NFS_SUPER_MAGIC}, std::uint32_t{0xFF534D42}, std::uint32_t{0x00C36400},
        std::uint32_t{0x0BD00BD0}, std::uint32_t{0x47504653}, std::uint32_t{0x19830326},
        std::uint32_t{0x01021997}, kFuse}) {
    EXPECT_TRUE(kind(magic).is_shared) << kind(magic).name;
    EXPECT_NE(kind(magic).reason.find(kind(magic).name), std::string::npos);
  }
}

TEST_F(FilesystemKindTest, WhatIsUnknownIsTakenForShared) {
  const FilesystemKind found = kind(0x12345678);
  EXPECT_TRUE(found.is_shared);
  EXPECT_EQ(found.name, "0x12345678");
}

TEST_F(FilesystemKindTest, TheTableOfMountsTellsWhichFuseItIs) {
  write_mounts(
      "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
      "nonsense\n"
      "36 22 0:40 / /mnt/a rw shared:5 master:1 - fuse.glusterfs host:/v rw,user_id=0\n"
      "37 22 0:41 / /mnt/b rw - nfs4 host:/e rw,vers=4.2\n"
      "38 22 8:17 / /mnt/c rw - fuseblk /dev/sdb1 rw\n");
  EXPECT_EQ(kind(kFuse, {0, 40}).name, "fuse.glusterfs");
  EXPECT_TRUE(kind(kFuse, {0, 40}).is_shared);
  EXPECT_EQ(kind(NFS_SUPER_MAGIC, {0, 41}).name, "nfs4");
  EXPECT_EQ(kind(kFuse, {8, 17}).name, "fuseblk");
  EXPECT_FALSE(kind(kFuse, {8, 17}).is_shared) << "a disk of this host";
  EXPECT_EQ(kind(kFuse, {0, 4}).name, "fuse") << "0:40 is another";
}

TEST_F(FilesystemKindTest, ADirectoryIsSharedAsItsFilesystemIsOrAsItIsSaid) {
  const RootProbe automatic = probe_root(directory.path(), DirectIoChoice::kOff);
  const RootProbe yes = probe_root(directory.path(), DirectIoChoice::kOff, SharedChoice::kShared);
  const RootProbe no = probe_root(directory.path(), DirectIoChoice::kOff, SharedChoice::kLocal);
  EXPECT_NE(automatic.shared_reason, "");
  EXPECT_EQ(yes.publish, Publish::kSyncThenRename);
  EXPECT_TRUE(yes.is_shared());
  EXPECT_EQ(no.publish, Publish::kRename);
  EXPECT_EQ(no.shared_reason, "asked for");
}

}  // namespace
}  // namespace lmkv
