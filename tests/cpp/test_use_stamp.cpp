#include <gtest/gtest.h>

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

}  // namespace
}  // namespace lmkv
