// Files where a server is in between: answers that are lost, handles that are stale, modes and
// times that are not the owner's own business.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>

#include "chunk_tree.hpp"
#include "file_io_fixture.hpp"

namespace lmkv {
namespace {

using test::kFileBytes;
using Outcome = FileWrite::Outcome;

constexpr std::int64_t kSecond = 1'000'000'000;

class SharedFilesTest : public test::FileIoTest {
 protected:
  // `error`, once, in place of an operation, which `first` may have happen.
  void start_with_one(OperationKind kind, int error, const std::function<void(Operation&)>& first) {
    happened = 0;
    start([this, kind, error, first](Operation& op) -> std::optional<int> {
      if (op.kind != kind || happened++ > 0) return std::nullopt;
      if (first) first(op);
      return -error;
    });
  }
  static mode_t mode_of(const std::string& path) {
    struct stat status{};
    EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
    return status.st_mode & 07777U;
  }

  int happened = 0;
};

TEST_P(SharedFilesTest, ARenameThatWasMadeThoughItsAnswerSaysOtherwiseHasStoredTheFile) {
  int number = 0;
  for (const int error : {ENOENT, EIO, ESTALE, ETIMEDOUT}) {
    start_with_one(OperationKind::kRename, error,
                   [](Operation& op) { EXPECT_EQ(::rename(op.path, op.target), 0); });
    const std::string path = directory / ("abc/file" + std::to_string(++number));
    // The first store in a directory finds it missing: of that there is another test.
    std::filesystem::create_directories(directory / "abc");
    const auto [status, outcome] = write(path, source.span());
    EXPECT_EQ(outcome, Outcome::kWritten) << status.message();
    expect_source_at(path);
    EXPECT_EQ(happened, 1) << "it was written again";
    EXPECT_EQ(leftovers(), 0U);
  }
}

TEST_P(SharedFilesTest, ARenameThatFailedIsNotTakenForOneThatWasMade) {
  std::filesystem::create_directories(directory / "abc");
  // Another writer's file is there; ours still has its temporary name.
  start_with_one(OperationKind::kRename, EIO,
                 [this](Operation& op) { std::filesystem::copy_file(op.path, target); });
  EXPECT_EQ(write_source(), Outcome::kFailed);
  expect_source_at(target);
  EXPECT_EQ(leftovers(), 0U);
  // Neither is there.
  std::filesystem::remove(target);
  start_with_one(OperationKind::kRename, EIO,
                 [](Operation& op) { std::filesystem::remove(op.path); });
  EXPECT_EQ(write_source(), Outcome::kFailed);
  // What is there is not ours.
  start_with_one(OperationKind::kRename, EIO, [this](Operation& op) {
    std::filesystem::remove(op.path);
    test::write_file(target, std::vector<std::byte>(100));
  });
  EXPECT_EQ(write_source(), Outcome::kFailed);
  start({});
  EXPECT_EQ(write_source(), Outcome::kWritten);
}

TEST_P(SharedFilesTest, AFileThatWasMadeThoughItsAnswerWasLostIsMadeAgain) {
  std::filesystem::create_directories(directory / "abc");
  start_with_one(OperationKind::kOpen, EEXIST, [](Operation& op) {
    const UniqueFd made(::open(op.path, op.flags, op.mode));
    EXPECT_GE(made.get(), 0);
  });
  EXPECT_EQ(write_source(), Outcome::kWritten);
  EXPECT_EQ(happened, 2);
  expect_source_at(target);
  EXPECT_EQ(leftovers(), 0U);
}

TEST_P(SharedFilesTest, ADirectoryThatAnotherHostHasReplacedIsNoFailure) {
  std::filesystem::create_directories(directory / "abc");
  for (const OperationKind kind : {OperationKind::kOpen, OperationKind::kRename}) {
    std::filesystem::remove(target);
    start_with_one(kind, ESTALE, {});
    EXPECT_EQ(write_source(), Outcome::kWritten) << static_cast<int>(kind);
    expect_source_at(target);
    EXPECT_EQ(leftovers(), 0U);
  }
}

TEST_P(SharedFilesTest, AStaleHandleIsTriedOnceMoreAndThenAMiss) {
  ASSERT_EQ(write_source(), Outcome::kWritten);
  for (const OperationKind kind :
       {OperationKind::kStat, OperationKind::kOpen, OperationKind::kRead}) {
    start_with_one(kind, ESTALE, {});
    expect_read_source();
    EXPECT_GT(happened, 1);
    start([kind](Operation& op) -> std::optional<int> {
      if (op.kind != kind) return std::nullopt;
      return -ESTALE;
    });
    EXPECT_EQ(read(target).kind(), StatusKind::kMissing) << static_cast<int>(kind);
  }
  EXPECT_TRUE(std::filesystem::exists(target));
}

TEST_P(SharedFilesTest, TheGroupsModesAreSetWhateverTheUmaskIs) {
  for (const mode_t umask : {0077, 0022, 0007}) {
    std::filesystem::remove_all(directory / "abc");
    options.access = Access::kGroup;
    start({});
    const mode_t before = ::umask(umask);
    const Outcome outcome = write_source();
    ::umask(before);
    EXPECT_EQ(outcome, Outcome::kWritten);
    EXPECT_EQ(mode_of(target), 0660U);
    EXPECT_EQ(mode_of(directory / "abc"), 02770U);
  }
}

TEST_P(SharedFilesTest, AModeThatCannotBeSetIsAFailureThatLeavesNothingBehind) {
  options.access = Access::kGroup;
  for (const int at : {0, 1}) {  // of the directory and the file
    std::filesystem::remove_all(directory / "abc");
    int seen = 0;
    start([&seen, at](Operation& op) -> std::optional<int> {
      if (op.kind != OperationKind::kSetMode || seen++ != at) return std::nullopt;
      return -EPERM;
    });
    EXPECT_EQ(write_source(), Outcome::kFailed);
    EXPECT_EQ(seen, at + 1);
    EXPECT_EQ(leftovers(), 0U);
  }
}

TEST_P(SharedFilesTest, ATimeThatOnlyTheOwnerMaySetBecomesThePresentOne) {
  ASSERT_EQ(write_source(), Outcome::kWritten);
  test::ChunkTree::set_used(target, std::chrono::hours(2));
  start([](Operation& op) -> std::optional<int> {
    if (op.kind == OperationKind::kSetModified && op.modified_ns != kModifiedNow) return -EPERM;
    return std::nullopt;
  });
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::int64_t stamp = std::chrono::nanoseconds(now - std::chrono::minutes(5)).count();
  files->touch(target, stamp);
  EXPECT_TRUE(test::eventually([&] { return files->touched() == 1; }));
  EXPECT_NEAR(static_cast<double>(test::modified_ns(target)),
              static_cast<double>(std::chrono::nanoseconds(now).count()), 5e9);
  EXPECT_EQ(files->touches_failed(), 0U);
  // And with a store that finds the file there.
  test::ChunkTree::set_used(target, std::chrono::hours(2));
  modified_ns = stamp;
  EXPECT_EQ(write_source(), Outcome::kAlreadyThere);
  EXPECT_GT(test::modified_ns(target), stamp);
}

TEST_P(SharedFilesTest, ATimeThatTheFilesystemHasCutToSecondsIsNotSetAgain) {
  ASSERT_EQ(write_source(), Outcome::kWritten);
  const std::int64_t second = std::chrono::duration_cast<std::chrono::seconds>(
                                  std::chrono::system_clock::now().time_since_epoch())
                                  .count() -
                              100;
  const auto set_to = [&](std::int64_t nanoseconds) {
    const timespec times[2] = {{0, UTIME_OMIT}, {nanoseconds / kSecond, nanoseconds % kSecond}};
    ASSERT_EQ(::utimensat(AT_FDCWD, target.c_str(), times, 0), 0);
  };
  set_to(second * kSecond);
  files->touch(target, second * kSecond + 999'744'000);  // what it was before
  files->touch(target, (second + 1) * kSecond + 1);      // a later one
  EXPECT_TRUE(test::eventually([&] { return files->touched() == 1; }));
  EXPECT_EQ(test::modified_ns(target), (second + 1) * kSecond + 1);
  set_to(second * kSecond + 5);  // whose filesystem has fine times
  files->touch(target, second * kSecond + 6);
  EXPECT_TRUE(test::eventually([&] { return files->touched() == 2; }));
}

INSTANTIATE_TEST_SUITE_P(Engines, SharedFilesTest, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
