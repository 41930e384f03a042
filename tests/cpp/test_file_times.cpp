#include <gtest/gtest.h>

#include <limits>

#include "chunk_tree.hpp"
#include "common/posix.hpp"
#include "store/file_times.hpp"

namespace lmkv {
namespace {

using test::ChunkTree;

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kHour = 3600 * kSecond;
constexpr std::int64_t kNow = 1'800'000'000 * kSecond;
constexpr std::int64_t kBefore = kNow - kHour;  // what is older is abandoned

bool abandoned(std::int64_t modified_ns, std::int64_t changed_ns) {
  return is_abandoned({0, modified_ns, changed_ns, 0}, kBefore, kNow);
}

TEST(FileTimes, ClocksThatDifferByLessThanAnHourAreBelieved) {
  EXPECT_FALSE(is_of_the_future(kNow + kHour, kNow));
  EXPECT_TRUE(is_of_the_future(kNow + kHour + 1, kNow));
}

TEST(FileTimes, WhatChangedAMomentAgoIsTheLastSecondsAndNotTheFuture) {
  const std::int64_t settled = kNow - 5 * kSecond;
  EXPECT_FALSE(changed_since(settled, settled, kNow));
  EXPECT_TRUE(changed_since(settled, settled + 1, kNow));
  EXPECT_TRUE(changed_since(settled, kNow + kHour, kNow)) << "clocks differ";
  EXPECT_FALSE(changed_since(settled, kNow + 2 * kHour, kNow));
}

TEST(FileTimes, ATemporaryIsAbandonedWhenNobodyHasWrittenToItForTheTime) {
  EXPECT_FALSE(abandoned(kBefore, kNow));
  EXPECT_TRUE(abandoned(kBefore - 1, kNow));
  EXPECT_FALSE(abandoned(kNow + kHour, kNow - 9 * kHour));
}

TEST(FileTimes, OfATemporaryOfTheFutureTheChangeTimeDecides) {
  constexpr std::int64_t kFuture = kNow + 999 * kHour;
  EXPECT_FALSE(abandoned(kFuture, kNow - kHour / 2)) << "somebody writes, by a wrong clock";
  EXPECT_TRUE(abandoned(kFuture, kBefore - 1));
  EXPECT_TRUE(abandoned(kFuture, kFuture)) << "the filesystem's clock was set back since";
}

TEST(FileTimes, AnyTimeThatAFileMaySayCanBeReckonedWith) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t seconds : {kMost, -kMost, kMost / 1'000'000'000}) {
    const std::int64_t said = nanoseconds(seconds, 999'999'999);
    EXPECT_EQ(said > 0, seconds > 0);
    EXPECT_EQ(is_of_the_future(said, kNow), seconds > 0);
  }
}

TEST(FileTimes, NowIsTheFilesystems) {
  const ChunkTree tree;
  EXPECT_LT(std::abs(filesystem_now_ns(tree.paths()) - system_now_ns()), 5 * kSecond)
      << "without a directory: ours";
  make_tree(tree.paths());
  ChunkTree::set_used(tree.paths().rank_directory(), std::chrono::hours(9999));
  EXPECT_LT(std::abs(filesystem_now_ns(tree.paths()) - system_now_ns()), 5 * kSecond);
}

}  // namespace
}  // namespace lmkv
