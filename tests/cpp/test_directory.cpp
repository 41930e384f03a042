#include <gtest/gtest.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <set>

#include "store/directory.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using test::digest_of;

class DirectoryTest : public ::testing::Test {
 protected:
  void put(const ChunkKey& key, std::uint32_t rank) {
    const ChunkPaths paths(root.path(), name, rank);
    make_tree(paths);
    std::filesystem::create_directories(std::filesystem::path(paths.chunk(key)).parent_path());
    test::write_file(paths.chunk(key), {});
  }

  test::TemporaryDirectory root;
  NamespaceDigest name = digest_of<NamespaceDigest>(1);
  std::vector<ChunkKey> keys = {digest_of<ChunkKey>(1), digest_of<ChunkKey>(2),
                                digest_of<ChunkKey>(3)};
};

TEST_F(DirectoryTest, PathsAreBuiltAsDocumented) {
  const ChunkPaths paths("/kv", name, 4);
  const std::string hex = keys[0].hex();
  EXPECT_EQ(paths.chunk(keys[0]),
            "/kv/v1/" + name.hex().substr(0, 16) + "/r4/" + hex.substr(0, 3) + "/" + hex + ".kv");
  EXPECT_EQ(hex.size(), 64U);
}

TEST_F(DirectoryTest, TemporaryNamesAreUniqueAndNameTheProcess) {
  const ChunkPaths paths("/kv", name, 0);
  std::set<std::string> names;
  for (int i = 0; i < 500; ++i) names.insert(paths.unique_temporary());
  for (int i = 0; i < 500; ++i) names.insert(paths.unique_temporary(keys[0]));
  EXPECT_EQ(names.size(), 1000U);
  EXPECT_NE(names.begin()->find("-" + std::to_string(::getpid()) + "-"), std::string::npos);
}

TEST_F(DirectoryTest, AChunkIsWrittenInItsOwnDirectory) {
  const ChunkPaths paths("/kv", name, 0);
  using std::filesystem::path;
  EXPECT_EQ(path(paths.unique_temporary(keys[0])).parent_path(),
            path(paths.chunk(keys[0])).parent_path());
}

TEST_F(DirectoryTest, LookupCountsTheLeadingRun) {
  const Directory directory({root.path()}, name, 1);
  EXPECT_EQ(directory.lookup(keys), 0U);
  put(keys[0], 0);
  put(keys[2], 0);
  EXPECT_EQ(directory.lookup(keys), 1U);
  put(keys[1], 0);
  EXPECT_EQ(directory.lookup(keys), 3U);
}

TEST_F(DirectoryTest, EachKeyIsToldUpToTheFirstHoleOrToTheEnd) {
  const Directory directory({root.path()}, name, 1);
  put(keys[0], 0);
  put(keys[2], 0);
  EXPECT_EQ(directory.present(keys, Until::kEnd), std::vector<bool>({true, false, true}));
  EXPECT_EQ(directory.present(keys, Until::kFirstAbsent), std::vector<bool>({true, false}));
  EXPECT_TRUE(directory.present({}, Until::kEnd).empty());
}

TEST_F(DirectoryTest, ATreeThatWasRemovedAndMadeAgainIsSeen) {
  const Directory directory({root.path()}, name, 1);
  put(keys[0], 0);
  EXPECT_EQ(directory.lookup(keys), 1U);
  std::filesystem::rename(root / "v1", root / "away");
  EXPECT_EQ(directory.lookup(keys), 0U);
  put(keys[0], 0);
  put(keys[1], 0);
  EXPECT_EQ(directory.lookup(keys), 2U);
}

TEST_F(DirectoryTest, AChunkCountsOnlyWhenEveryRankHasIt) {
  const Directory directory({root.path()}, name, 2);
  put(keys[0], 0);
  EXPECT_EQ(directory.lookup(keys), 0U);
  put(keys[0], 1);
  EXPECT_EQ(directory.lookup(keys), 1U);
}

TEST_F(DirectoryTest, AnotherNamespaceSeesNothing) {
  put(keys[0], 0);
  EXPECT_EQ(Directory({root.path()}, digest_of<NamespaceDigest>(2), 1).lookup(keys), 0U);
}

TEST_F(DirectoryTest, OnExt4ChunksAreSpreadOverTheDisk) {
  struct statfs filesystem{};
  ASSERT_EQ(::statfs(root.path().c_str(), &filesystem), 0);
  if (filesystem.f_type != EXT4_SUPER_MAGIC) GTEST_SKIP() << "not on ext4";
  const ChunkPaths paths(root.path(), name, 0);
  make_tree(paths);
  make_tree(paths);  // it may be there already
  const UniqueFd opened(::open(paths.rank_directory().c_str(), O_RDONLY | O_CLOEXEC));
  int flags = 0;
  ASSERT_EQ(::ioctl(opened.get(), FS_IOC_GETFLAGS, &flags), 0);
  EXPECT_NE(flags & FS_TOPDIR_FL, 0);
}

TEST_F(DirectoryTest, TheTreeIsTheOwnersAlone) {
  const ChunkPaths paths(root.path(), name, 0);
  make_tree(paths);
  struct stat status{};
  ASSERT_EQ(::stat(paths.temporary_directory().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0700U);
}

TEST_F(DirectoryTest, ARootThatIsMadeIsItsOwnersAloneAndOneThatIsThereStaysAsItIs) {
  const auto mode = [](const std::filesystem::path& path) {
    struct stat status = {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 0777U;
  };
  make_root(root / "new/kv");
  EXPECT_EQ(mode(root.path() / "new/kv"), 0700U);
  std::filesystem::permissions(root.path() / "new/kv", std::filesystem::perms::all);
  make_root(root / "new/kv");
  EXPECT_EQ(mode(root.path() / "new/kv"), 0777U);
  test::write_file(root / "new/file", {});
  EXPECT_THROW(make_root(root / "new/file"), std::runtime_error);
}

TEST_F(DirectoryTest, OfAGroupTheTreeIsTheGroupsWhateverTheUmaskIs) {
  const auto mode = [](const std::string& path) {
    struct stat status = {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 07777U;
  };
  const ChunkPaths paths(root / "kv", name, 0);
  const mode_t before = ::umask(0077);
  make_tree(paths, Access::kGroup);
  // Made for its owner alone, or by somebody who was killed before it had its mode.
  const std::string old = paths.rank_directory() + "/abc";
  ASSERT_EQ(::mkdir(old.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(paths.temporary_directory().c_str(), 0700), 0);
  make_tree(paths, Access::kGroup);
  ::umask(before);
  for (const std::string& path : {paths.root(), paths.root() + "/v1", paths.rank_directory(),
                                  paths.temporary_directory(), old}) {
    EXPECT_EQ(mode(path), 02770U) << path;
  }
}

TEST_F(DirectoryTest, OfAGroupTheTreeIsOfTheRootsGroup) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may give a directory to any group";
  ASSERT_EQ(::chown(root.path().c_str(), 0, 4321), 0);  // without setgid
  const ChunkPaths paths(root.path(), name, 0);
  make_tree(paths, Access::kGroup);
  struct stat status{};
  ASSERT_EQ(::stat(paths.temporary_directory().c_str(), &status), 0);
  EXPECT_EQ(status.st_gid, 4321U);
}

TEST_F(DirectoryTest, ALinkInTheTreeIsRefusedAndNamed) {
  const ChunkPaths paths(root.path(), name, 0);
  make_tree(paths);
  std::filesystem::rename(root / "v1", root / "elsewhere");
  std::filesystem::create_directory_symlink(root / "elsewhere", root / "v1");
  try {
    make_tree(paths);
    FAIL() << "no exception";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find(root / "v1 is a symbolic link"), std::string::npos);
  }
  // The root itself is its user's.
  std::filesystem::create_directory_symlink(root.path(), root / "link");
  std::filesystem::remove(root / "v1");
  EXPECT_NO_THROW(make_tree(ChunkPaths(root / "link", name, 0)));
}

TEST_F(DirectoryTest, ALinkInTheTreeIsNotFollowedWhenItIsMade) {
  namespace fs = std::filesystem;
  const ChunkPaths paths(root.path(), name, 0);
  const test::TemporaryDirectory elsewhere;
  std::vector<std::string> directories = paths.directories_for(keys[0]);
  directories.pop_back();
  for (const std::string& directory : directories) {
    make_tree(paths);
    fs::rename(directory, root / "aside");
    fs::create_directory_symlink(elsewhere.path(), directory);
    EXPECT_THROW(make_tree(paths), std::runtime_error) << directory;
    EXPECT_TRUE(fs::is_empty(elsewhere.path()));
    fs::remove_all(root / "v1");
    fs::remove_all(root / "aside");
  }
}

TEST_F(DirectoryTest, ARootThatCannotBeMadeIsNamed) {
  test::write_file(root / "file", {});
  try {
    make_tree(ChunkPaths(root / "file/below", name, 0));
    FAIL() << "no exception";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("file/below"), std::string::npos);
  }
}

}  // namespace
}  // namespace lmkv
