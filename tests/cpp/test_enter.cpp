#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>

#include "common/enter.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

namespace fs = std::filesystem;

class Enter : public ::testing::Test {
 protected:
  Enter() { fs::create_directories(root.path() / "a/b/c"); }
  // Whether both ways lead to the same: 0, or errno.
  int entering(const std::string& path) {
    const UniqueFd from(::open(root.path().c_str(), kEnterFlags));
    const UniqueFd at_once(enter_below(from.get(), path.c_str()));
    const int error = at_once.get() < 0 ? errno : 0;
    const UniqueFd by_steps(enter_step_by_step(from.get(), path));
    EXPECT_EQ(by_steps.get() < 0 ? errno : 0, error) << path;
    struct stat one{};
    struct stat other{};
    if (error == 0 && ::fstat(at_once.get(), &one) == 0 && ::fstat(by_steps.get(), &other) == 0) {
      EXPECT_EQ(one.st_ino, other.st_ino);
      EXPECT_TRUE(
          fs::equivalent(root.path() / path, "/proc/self/fd/" + std::to_string(at_once.get())));
    }
    return error;
  }

  test::TemporaryDirectory root;
};

TEST_F(Enter, DirectoriesBelowAreEnteredAtOnceOrStepByStep) {
  const std::size_t before = test::open_descriptors();
  for (const char* path : {"a", "a/b", "a/b/c", "a/b/c/"}) EXPECT_EQ(entering(path), 0) << path;
  EXPECT_EQ(entering("a/none"), ENOENT);
  EXPECT_EQ(entering("none/b"), ENOENT);
  EXPECT_EQ(test::open_descriptors(), before);
}

TEST_F(Enter, WhatIsNoDirectoryIsToldFromALink) {
  test::write_file(root / "file", {});
  ASSERT_EQ(::mkfifo((root / "fifo").c_str(), 0600), 0);
  fs::create_directory_symlink(root.path() / "a", root.path() / "link");
  fs::create_directory_symlink(root.path() / "nothing", root.path() / "a/dangling");
  fs::create_symlink("self", root.path() / "self");
  for (const char* path : {"file", "file/b", "fifo", "fifo/b"}) EXPECT_EQ(entering(path), ENOTDIR);
  for (const char* path : {"link", "link/b", "a/dangling", "a/dangling/b", "self", "self/b"}) {
    EXPECT_EQ(entering(path), ELOOP) << path;
  }
}

TEST_F(Enter, TheRootItselfMayBeALink) {
  const test::TemporaryDirectory links;
  fs::create_directory_symlink(root.path(), links / "root");
  EXPECT_GE(enter(links / "root", links / "root").get(), 0);
  EXPECT_GE(enter(links / "root", links / "root/a/b").get(), 0);
  fs::create_directory_symlink(root.path() / "a", root.path() / "link");
  EXPECT_LT(enter(links / "root", links / "root/link/b").get(), 0);
  EXPECT_EQ(errno, ELOOP);
}

}  // namespace
}  // namespace lmkv
