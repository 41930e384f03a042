#include <gtest/gtest.h>

#include <algorithm>

#include "store/use_stamp.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

const UseTime kNow{std::chrono::milliseconds(1'800'000'000'500)};  // half a second into a tick

TEST(UseStamp, WithinARequestDeeperIsOlderWhateverTheOrderOfWriting) {
  const std::int64_t head = use_stamp(kNow, 0, kNow + 90s);
  const std::int64_t middle = use_stamp(kNow, 256, kNow);
  const std::int64_t tail = use_stamp(kNow, 512, kNow + 180s);
  EXPECT_GT(head, middle);
  EXPECT_GT(middle, tail);
}

TEST(UseStamp, EveryUseOfATickIsTheSame) {
  EXPECT_EQ(use_stamp(kNow, 256, kNow), use_stamp(kNow + 1s, 256, kNow + 1s));
  EXPECT_LT(use_stamp(kNow, 256, kNow), use_stamp(kNow + 2s, 256, kNow + 2s));
}

TEST(UseStamp, TheDeepestChunkIsNewerThanAnyOfTheTickBefore) {
  EXPECT_GT(use_stamp(kNow + 2s, std::uint64_t{1} << 60, kNow + 2s), use_stamp(kNow, 0, kNow));
}

TEST(UseStamp, WithinARequestOfADayItIsTheSame) {
  EXPECT_EQ(use_stamp(kNow, 256, kNow + 24h), use_stamp(kNow, 256, kNow));
}

TEST(UseStamp, IsNeverInTheFuture) {
  const std::int64_t now = std::chrono::nanoseconds(kNow.time_since_epoch()).count();
  EXPECT_LE(use_stamp(kNow + 24h, 0, kNow), now);
}

TEST(UseStamp, SaysWhenHowDeepAndHowOften) {
  const std::int64_t tick = std::chrono::nanoseconds(1'800'000'000s).count();
  std::int64_t stamp = use_stamp(kNow, 12'345, kNow);
  EXPECT_EQ(use_of(stamp).last_ns, tick);
  EXPECT_EQ(use_of(stamp).token_begin, 12'345U);
  EXPECT_EQ(use_of(stamp).again, 0U);
  for (unsigned n = 1; n <= 20; ++n) {
    stamp = renewed(stamp, use_stamp(kNow + 2s * n, 12'345, kNow + 2s * n));
    EXPECT_EQ(use_of(stamp).last_ns, tick + n * std::chrono::nanoseconds(2s).count());
    EXPECT_EQ(use_of(stamp).token_begin, 12'345U);
    EXPECT_EQ(use_of(stamp).again, std::min(n, kMostUses));
  }
}

TEST(UseStamp, OfATickAFileHasAlreadyOrOfAnEarlierOneChangesNothing) {
  const std::int64_t stamp = use_stamp(kNow, 256, kNow);
  EXPECT_EQ(renewed(stamp, use_stamp(kNow + 1s, 256, kNow + 1s)), stamp);
  EXPECT_EQ(renewed(stamp, use_stamp(kNow - 60s, 256, kNow)), stamp);
  const std::int64_t used = renewed(stamp, use_stamp(kNow + 2s, 256, kNow + 2s));
  EXPECT_EQ(renewed(used, use_stamp(kNow + 3s, 256, kNow + 3s)), used);
}

TEST(UseStamp, HowOftenNeverChangesTheOrderOfTwoChunks) {
  const std::int64_t tail = use_stamp(kNow, 257, kNow);
  std::int64_t used_tail = use_stamp(kNow - 120s, 257, kNow);
  for (int n = 59; n >= 0; --n) {
    used_tail = renewed(used_tail, use_stamp(kNow - 2s * n, 257, kNow));
  }
  EXPECT_EQ(use_of(used_tail).again, kMostUses);
  EXPECT_GT(use_stamp(kNow, 256, kNow), used_tail);
  EXPECT_EQ(stamp::whole_microseconds(used_tail), stamp::whole_microseconds(tail));
}

TEST(UseStamp, AnotherWritersTimeCountsAsWrittenThenAndHardlyEverAsUsedAgain) {
  int used_again = 0;
  for (std::int64_t n = 0; n < 10'000; ++n) {
    const std::int64_t time = 1'700'000'000'000'000'000 + n * 987'654'321'123;
    const Use use = use_of(time);
    EXPECT_GE(use.last_ns, time - time % 1000);
    EXPECT_LT(use.last_ns - time, std::chrono::nanoseconds(2s).count());
    used_again += use.again > 0 ? 1 : 0;
  }
  EXPECT_LT(used_again, 300);
  for (const std::int64_t coarser : {1'000LL, 1'000'000LL, 1'000'000'000LL}) {
    const std::int64_t stamp = renewed(0, use_stamp(kNow, 256, kNow));
    EXPECT_EQ(use_of(stamp).again, 1U);
    EXPECT_EQ(use_of(stamp - stamp % coarser).again, 0U) << coarser;
  }
  EXPECT_EQ(use_of(-1'500'000'000).last_ns, 0);  // a clock before the epoch
}

}  // namespace
}  // namespace lmkv
