#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>

#include "io/root_probe.hpp"
#include "store/space.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kMega = 1'000'000;

class SpaceTest : public ::testing::Test {
 protected:
  // A ledger of 1000 MB after a scan that found `used`.
  SpaceLedger& with_capacity(std::uint64_t used) {
    ledger.emplace(SpaceLimits{1000 * kMega, 0}, [this] { ++calls; });
    ledger->begin_scan();
    ledger->end_scan(used, true);
    return *ledger;
  }
  // A floor of 100 MB on a filesystem of 2000.
  SpaceLedger& with_floor(std::uint64_t free) {
    ledger.emplace(SpaceLimits{0, 0.05}, [this] { ++calls; });
    ledger->saw_filesystem({2000 * kMega, free});
    return *ledger;
  }
  void store(std::size_t bytes) {
    ASSERT_TRUE(ledger->try_reserve(bytes));
    ledger->settle(bytes, true);
  }
  std::optional<SpaceLedger> ledger;
  int calls = 0;
};

TEST_F(SpaceTest, WithoutLimitsEverythingIsAdmitted) {
  SpaceLedger space({}, [] {});
  EXPECT_TRUE(space.try_reserve(std::size_t{1} << 60));
  EXPECT_EQ(space.excess(), 0U);
}

TEST_F(SpaceTest, NothingIsAdmittedAboveTheCapacityAndTheRestWaitsForRoom) {
  SpaceLedger& space = with_capacity(900 * kMega);
  EXPECT_TRUE(space.try_reserve(60 * kMega));
  EXPECT_TRUE(space.try_reserve(40 * kMega));
  EXPECT_FALSE(space.try_reserve(1));
  EXPECT_FALSE(space.has_room(1));
  EXPECT_TRUE(space.is_full());
  space.settle(60 * kMega, false);  // it failed: its bytes are free again
  EXPECT_TRUE(space.try_reserve(60 * kMega));
}

TEST_F(SpaceTest, BeforeTheFirstScanNothingIsAdmittedToALimitedDirectory) {
  SpaceLedger space({1000 * kMega, 0}, [] {});
  EXPECT_FALSE(space.has_room(1));
  space.begin_scan();
  EXPECT_FALSE(space.has_room(1));
  space.end_scan(0, true);
  EXPECT_TRUE(space.has_room(1));
}

TEST_F(SpaceTest, EvictionStartsBelowTheCapacityAndEndsFurtherDown) {
  SpaceLedger& space = with_capacity(970 * kMega);
  EXPECT_EQ(space.excess(), 0U);
  store(10 * kMega);
  EXPECT_EQ(space.excess(), 30 * kMega);
  space.evicted(20 * kMega);
  EXPECT_EQ(space.excess(), 0U);  // between the two marks nothing starts
  EXPECT_EQ(space.used(), 960 * kMega);
}

TEST_F(SpaceTest, ARefusedStoreIsMadeRoomForThoughTheMarkIsNotReached) {
  SpaceLedger& space = with_capacity(960 * kMega);
  EXPECT_FALSE(space.has_room(320 * kMega));
  EXPECT_EQ(space.excess(), 280 * kMega);
  space.evicted(320 * kMega);
  space.made_room();
  EXPECT_EQ(space.excess(), 0U);
  EXPECT_TRUE(space.has_room(320 * kMega));
}

TEST_F(SpaceTest, StoresOfOthersAreSeenByTheSpaceTheyTook) {
  ledger.emplace(SpaceLimits{1000 * kMega, 0}, [] {});
  ledger->saw_filesystem({5000 * kMega, 3000 * kMega});
  ledger->begin_scan();
  ledger->end_scan(500 * kMega, true);
  store(100 * kMega);
  EXPECT_EQ(ledger->used(), 600 * kMega);
  ledger->saw_filesystem({5000 * kMega, 2600 * kMega});  // ours and 300 more
  EXPECT_FALSE(ledger->has_room(101 * kMega));
  EXPECT_TRUE(ledger->has_room(100 * kMega));
  ledger->saw_filesystem({5000 * kMega, 2420 * kMega});
  EXPECT_TRUE(ledger->may_have_excess());
  EXPECT_EQ(ledger->excess(), 0U);  // it may have been anybody's files
  EXPECT_EQ(ledger->used(), 600 * kMega);
  ledger->saw_filesystem({5000 * kMega, 3500 * kMega});  // others deleted: ours are still there
  EXPECT_TRUE(ledger->has_room(400 * kMega));
  EXPECT_FALSE(ledger->has_room(401 * kMega));
}

TEST_F(SpaceTest, NearALimitALookAtTheFilesystemHasToComeBetweenStores) {
  ledger.emplace(SpaceLimits{1000 * kMega, 0, 10 * kMega}, [this] { ++calls; });
  ledger->begin_scan();
  ledger->end_scan(960 * kMega, true);
  EXPECT_TRUE(ledger->try_reserve(15 * kMega));  // one in any case
  EXPECT_FALSE(ledger->try_reserve(kMega));
  EXPECT_EQ(calls, 2);  // both ask for one
  EXPECT_TRUE(ledger->has_room(kMega));
  ledger->saw_filesystem({5000 * kMega, 2000 * kMega});
  EXPECT_TRUE(ledger->try_reserve(6 * kMega));
  EXPECT_TRUE(ledger->try_reserve(4 * kMega));
  EXPECT_FALSE(ledger->try_reserve(kMega));
  EXPECT_EQ(ledger->excess(), 35 * kMega);  // as it is: nothing more was asked for
}

TEST_F(SpaceTest, WhatIsStoredDuringAScanStaysCounted) {
  SpaceLedger& space = with_capacity(100 * kMega);
  store(50 * kMega);
  space.begin_scan();
  store(30 * kMega);
  EXPECT_EQ(space.used(), 180 * kMega);
  space.end_scan(150 * kMega, true);
  EXPECT_EQ(space.used(), 180 * kMega);
}

TEST_F(SpaceTest, AScanThatCouldNotSeeEverythingDoesNotMakeRoom) {
  SpaceLedger& space = with_capacity(900 * kMega);
  space.begin_scan();
  space.end_scan(10 * kMega, false);
  EXPECT_EQ(space.used(), 900 * kMega);
}

TEST_F(SpaceTest, TheFloorIsKeptWithTheSameHysteresis) {
  SpaceLedger& space = with_floor(106 * kMega);
  EXPECT_EQ(space.excess(), 0U);
  EXPECT_TRUE(space.has_room(6 * kMega));
  EXPECT_FALSE(space.has_room(7 * kMega));
  EXPECT_EQ(space.excess(), 4 * kMega);
  space.made_room();
  space.saw_filesystem({2000 * kMega, 104 * kMega});
  EXPECT_EQ(space.excess(), 6 * kMega);
  space.evicted(6 * kMega);
  EXPECT_EQ(space.excess(), 0U);
}

TEST_F(SpaceTest, ADiskFullForAnotherReasonIsMadeRoomOnButNotForEver) {
  SpaceLedger& space = with_capacity(100 * kMega);
  SpaceLedger::Clock::time_point now{1h};
  space.met_full_disk(kMega, now);
  EXPECT_EQ(space.excess(), 16 * kMega);
  space.evicted(16 * kMega);
  space.made_room(now);
  EXPECT_EQ(space.excess(), 0U);
  const auto waits = [&](SpaceLedger::Clock::duration pause) {
    space.met_full_disk(kMega, now + pause - 1ms);
    EXPECT_EQ(space.excess(), 0U);
    now += pause;
    space.met_full_disk(kMega, now);
    EXPECT_EQ(space.excess(), 16 * kMega);
    space.evicted(16 * kMega);
    space.made_room(now);
  };
  waits(1s);
  waits(2s);  // nothing could be written in between: it was not room that was missing
  waits(4s);
  store(8 * kMega);  // it was
  waits(8s);
  waits(1s);
}

TEST_F(SpaceTest, AttentionIsAskedForWhereSomethingIsToBeDone) {
  SpaceLedger& space = with_capacity(500 * kMega);
  store(kMega);
  EXPECT_EQ(calls, 0);
  EXPECT_FALSE(space.has_room(600 * kMega));
  EXPECT_EQ(calls, 1);
  store(400 * kMega);  // near the limit: when it begins and when it ends
  EXPECT_EQ(calls, 3);
  space.met_full_disk(1);
  EXPECT_EQ(calls, 4);
}

TEST_F(SpaceTest, TheFilesystemIsTheOneThatIsExpectedOrNone) {
  const test::TemporaryDirectory directory;
  const RootProbe probe = probe_root(directory.path(), DirectIoChoice::kOff);
  const auto found = filesystem_space(directory.path(), probe.id);
  ASSERT_TRUE(found);
  EXPECT_GT(found->total, found->free);
  EXPECT_FALSE(filesystem_space(directory.path(), {probe.id.major, probe.id.minor + 1}));
  EXPECT_EQ(errno, ENODEV);
  EXPECT_FALSE(filesystem_space(directory / "none", probe.id));
  EXPECT_EQ(errno, ENOENT);
}

}  // namespace
}  // namespace lmkv
