#include <gtest/gtest.h>

#include "store/use_stamp.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

const UseTime kNow{std::chrono::seconds(1'800'000'003)};  // three seconds into a tick

TEST(UseStamp, WithinARequestDeeperIsOlderWhateverTheOrderOfWriting) {
  const std::int64_t head = use_stamp(kNow, 0, kNow + 90s);
  const std::int64_t middle = use_stamp(kNow, 256, kNow);
  const std::int64_t tail = use_stamp(kNow, 512, kNow + 180s);
  EXPECT_GT(head, middle);
  EXPECT_GT(middle, tail);
}

TEST(UseStamp, EveryUseOfATickIsTheSame) {
  EXPECT_EQ(use_stamp(kNow, 256, kNow), use_stamp(kNow + 6s, 256, kNow + 6s));
  EXPECT_LT(use_stamp(kNow, 256, kNow), use_stamp(kNow + 7s, 256, kNow + 7s));
}

TEST(UseStamp, TheDeepestChunkIsNewerThanAnyOfTheTickBefore) {
  EXPECT_GT(use_stamp(kNow + 7s, std::uint64_t{1} << 60, kNow + 7s), use_stamp(kNow, 0, kNow));
}

TEST(UseStamp, IsNeverInTheFutureNorOlderThanAFileThatIsBeingWrittenMayLook) {
  const std::int64_t now = std::chrono::nanoseconds(kNow.time_since_epoch()).count();
  EXPECT_LE(use_stamp(kNow + 24h, 0, kNow), now);
  EXPECT_GT(use_stamp(kNow - 24h, 0, kNow), now - std::chrono::nanoseconds(31min).count());
}

}  // namespace
}  // namespace lmkv
