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
  // A floor of 100 MB on a filesystem of 2000, of which `ours` are this engine's.
  SpaceLedger& with_floor(std::uint64_t free, std::size_t ours) {
    ledger.emplace(SpaceLimits{0, 0.05}, [this] { ++calls; });
    if (ours != 0) store(ours);
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
  EXPECT_EQ(space.excess().bytes, 0U);
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
  EXPECT_EQ(space.excess().bytes, 0U);
  store(10 * kMega);
  EXPECT_EQ(space.excess().bytes, 30 * kMega);
  space.evicted(20 * kMega);
  EXPECT_EQ(space.excess().bytes, 0U);  // between the two marks nothing starts
  EXPECT_EQ(space.used(), 960 * kMega);
}

TEST_F(SpaceTest, ARefusedStoreIsMadeRoomForThoughTheMarkIsNotReached) {
  SpaceLedger& space = with_capacity(960 * kMega);
  EXPECT_FALSE(space.has_room(320 * kMega));
  EXPECT_EQ(space.excess().bytes, 280 * kMega);
  space.evicted(320 * kMega);
  space.made_room();
  EXPECT_EQ(space.excess().bytes, 0U);
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
  EXPECT_EQ(ledger->excess().bytes, 0U);  // it may have been anybody's files
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
  EXPECT_EQ(ledger->excess().bytes, 35 * kMega);  // as it is: nothing more was asked for
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

TEST_F(SpaceTest, AScanThatCouldNotSeeEverythingDoesNotBookTheBytesOfOthers) {
  SpaceLedger& space = with_capacity(500 * kMega);
  const auto incomplete = [&](std::uint64_t free) {
    space.saw_filesystem({5000 * kMega, free});
    space.begin_scan();
    space.end_scan(400 * kMega, false);
  };
  incomplete(3000 * kMega);
  incomplete(2000 * kMega);  // a neighbour's file
  incomplete(3000 * kMega);  // and its end
  EXPECT_EQ(space.used(), 500 * kMega);
  ASSERT_TRUE(space.try_reserve(10 * kMega));
  space.begin_scan();
  store(20 * kMega);
  space.end_scan(420 * kMega, false);
  EXPECT_EQ(space.used(), 520 * kMega);
  space.settle(10 * kMega, false);
  EXPECT_EQ(space.used(), 520 * kMega);
}

TEST_F(SpaceTest, WhatAnIncompleteScanSawOfOurOwnIsNotCountedTwice) {
  SpaceLedger& space = with_capacity(0);
  space.begin_scan();
  store(20 * kMega);
  space.end_scan(120 * kMega, false);
  EXPECT_EQ(space.used(), 120 * kMega);
}

TEST_F(SpaceTest, TheFloorIsKeptWithTheSameHysteresis) {
  SpaceLedger& space = with_floor(106 * kMega, 50 * kMega);
  EXPECT_EQ(space.excess().bytes, 0U);
  EXPECT_TRUE(space.has_room(6 * kMega));
  EXPECT_FALSE(space.has_room(7 * kMega));
  EXPECT_EQ(space.excess().bytes, 4 * kMega);
  space.made_room();
  space.saw_filesystem({2000 * kMega, 104 * kMega});
  EXPECT_EQ(space.excess().bytes, 6 * kMega);
  space.evicted(6 * kMega);
  EXPECT_EQ(space.excess().bytes, 0U);
}

TEST_F(SpaceTest, ADiskFullForAnotherReasonIsMadeRoomOnButNotForEver) {
  SpaceLedger& space = with_capacity(100 * kMega);
  SpaceLedger::Clock::time_point now{1h};
  space.met_full_disk(kMega, false, now);
  EXPECT_EQ(space.excess().bytes, 16 * kMega);
  space.evicted(16 * kMega);
  space.made_room(EvictionReason::kFullDisk, now);
  EXPECT_EQ(space.excess().bytes, 0U);
  const auto waits = [&](SpaceLedger::Clock::duration pause) {
    space.met_full_disk(kMega, false, now + pause - 1ms);
    EXPECT_EQ(space.excess().bytes, 0U);
    now += pause;
    space.met_full_disk(kMega, false, now);
    EXPECT_EQ(space.excess().bytes, 16 * kMega);
    space.evicted(16 * kMega);
    space.made_room(EvictionReason::kFullDisk, now);
  };
  waits(1s);
  waits(2s);  // nothing could be written in between: it was not room that was missing
  store(kMega);
  waits(4s);
  store(8 * kMega);  // it was
  waits(8s);
  waits(1s);
}

TEST_F(SpaceTest, AfterThreePassesForAFullDiskOnlyASuccessfulStoreAllowsMore) {
  SpaceLedger& space = with_capacity(100 * kMega);
  SpaceLedger::Clock::time_point now{1h};
  for (int pass = 0; pass < 5; ++pass, now += 1h) {  // everything was spared
    space.met_full_disk(kMega, false, now);
    EXPECT_EQ(space.excess().bytes, 16 * kMega);
    space.made_room(EvictionReason::kFullDisk, now);
  }
  for (int pass = 0; pass < 3; ++pass, now += 1h) {
    space.met_full_disk(kMega, false, now);
    EXPECT_EQ(space.excess().reason, EvictionReason::kFullDisk);
    space.evicted(16 * kMega);
    space.made_room(EvictionReason::kFullDisk, now);
  }
  space.met_full_disk(kMega, false, now);
  EXPECT_EQ(space.excess().bytes, 0U);
  store(kMega);
  space.met_full_disk(kMega, false, now);
  EXPECT_EQ(space.excess().bytes, 16 * kMega);
}

TEST_F(SpaceTest, AFullDiskTakesSixteenStoresOfALargeCacheAndNothingIfThereIsRoomByNow) {
  SpaceLedger& space = with_capacity(900 * kMega);
  space.saw_filesystem({5000 * kMega, 0});
  space.met_full_disk(kMega);
  space.begin_pass();
  EXPECT_EQ(space.excess().bytes, 16 * kMega);
  space.saw_filesystem({5000 * kMega, 15 * kMega});
  space.begin_pass();
  EXPECT_EQ(space.excess().bytes, 16 * kMega);
  space.saw_filesystem({5000 * kMega, 16 * kMega, 3});  // but for the names
  space.begin_pass();
  EXPECT_EQ(space.excess().bytes, 16 * kMega);
  space.saw_filesystem({5000 * kMega, 16 * kMega});  // another rank's pass
  space.begin_pass();
  EXPECT_EQ(space.excess().bytes, 0U);
  space.met_full_disk(kMega, true);  // of a quota the free space says nothing
  space.begin_pass();
  EXPECT_EQ(space.excess().bytes, 16 * kMega);
}

TEST_F(SpaceTest, TheFloorTakesBackOnlyWhatThisEngineStored) {
  SpaceLedger& space = with_floor(20 * kMega, 0);  // others have filled the disk
  space.begin_scan();
  space.end_scan(900 * kMega, true);
  EXPECT_FALSE(space.has_room(kMega));
  EXPECT_FALSE(space.may_have_excess());
  EXPECT_EQ(space.excess().bytes, 0U);
  space.saw_filesystem({2000 * kMega, 130 * kMega});
  store(30 * kMega);
  space.saw_filesystem({2000 * kMega, 20 * kMega});
  EXPECT_EQ(space.excess().bytes, 30 * kMega);
  EXPECT_EQ(space.excess().reason, EvictionReason::kFloor);
  space.evicted(25 * kMega);
  space.saw_filesystem({2000 * kMega, 20 * kMega});
  EXPECT_EQ(space.excess().bytes, 5 * kMega);
  space.evicted(10 * kMega);
  EXPECT_EQ(space.excess().bytes, 0U);
}

TEST_F(SpaceTest, AFloorPassThatFreedNothingIsRepeatedLessAndLessOften) {
  SpaceLedger& space = with_floor(90 * kMega, 500 * kMega);
  SpaceLedger::Clock::time_point now{1h};
  const auto pass = [&](std::uint64_t free_after) {
    space.begin_pass();
    EXPECT_GT(space.excess(now).bytes, 0U);
    space.evicted(20 * kMega);
    space.saw_filesystem({2000 * kMega, free_after});
    space.made_room(EvictionReason::kFloor, now);
  };
  for (const auto pause : {60s, 120s, 240s, 480s, 600s, 600s}) {
    pass(90 * kMega);
    EXPECT_FALSE(space.may_have_excess(now + pause - 1ms));
    EXPECT_EQ(space.excess(now + pause - 1ms).bytes, 0U);
    now += pause;
    EXPECT_TRUE(space.may_have_excess(now));
  }
  pass(95 * kMega);  // it helps
  EXPECT_TRUE(space.may_have_excess(now));
  pass(95 * kMega);
  EXPECT_FALSE(space.may_have_excess(now + 599s));
  space.saw_filesystem({2000 * kMega, 120 * kMega});  // it came back late
  space.saw_filesystem({2000 * kMega, 95 * kMega});
  EXPECT_TRUE(space.may_have_excess(now));
  pass(95 * kMega);
  EXPECT_TRUE(space.may_have_excess(now + 60s));
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

TEST_F(SpaceTest, TheFilesystemIsTheOneThatIsThereUnlessItIsWhatAMountHadCovered) {
  const test::TemporaryDirectory directory;
  const RootProbe probe = probe_root(directory.path(), DirectIoChoice::kOff);
  const auto found = filesystem_space(directory.path(), probe.place);
  ASSERT_TRUE(found);
  EXPECT_GT(found->total, found->free);
  const FilesystemId own = probe.place.own;
  const FilesystemId other{own.major, own.minor + 1};
  EXPECT_TRUE(filesystem_space(directory.path(), {other, {}})) << "mounted again";
  EXPECT_FALSE(filesystem_space(directory.path(), {other, {own}})) << "its mount point";
  EXPECT_EQ(errno, ENODEV);
  EXPECT_FALSE(filesystem_space(directory / "none", probe.place));
  EXPECT_EQ(errno, ENOENT);
}

}  // namespace
}  // namespace lmkv
