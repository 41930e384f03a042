#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "chunk_tree.hpp"
#include "io/root_probe.hpp"
#include "store/housekeeper.hpp"
#include "store/lease.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::ChunkTree;
using test::eventually;

constexpr std::size_t kChunk = 4 * kPageBytes;

class HousekeeperTest : public ::testing::Test {
 protected:
  HousekeeperTest() {
    options.spared = 0ms;
    options.order = EvictionOrder::kLeastRecentlyUsed;  // exactly; the other has tests of its own
    options.sample_interval = 5ms;
    make_tree(tree.paths());
  }
  void start(std::uint64_t chunks_of_capacity) {
    limits.capacity = chunks_of_capacity * kChunk;
    keeper = std::make_unique<Housekeeper>(
        tree.paths(), probe_root(tree.root(), DirectIoChoice::kOff).place, limits, options);
  }
  std::uint64_t stat(const char* name) const { return keeper->stats().at(name); }
  bool passes(std::uint64_t count) {
    return eventually([&] { return stat("housekeeping_passes") >= count; });
  }
  // Chunk n was used n hours ago.
  void put(std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t n = first; n <= last; ++n) tree.put(n, kChunk, std::chrono::hours(n));
  }
  std::uint64_t present(std::uint64_t last) const {
    std::uint64_t count = 0;
    for (std::uint64_t n = 1; n <= last; ++n) count += tree.has(n) ? 1U : 0U;
    return count;
  }

  ChunkTree tree;
  SpaceLimits limits;
  HousekeepingOptions options;
  std::unique_ptr<Housekeeper> keeper;
};

TEST_F(HousekeeperTest, WhatIsThereIsCountedAtStartAndBelowTheLimitNothingIsEvicted) {
  put(1, 20);
  start(100);
  ASSERT_TRUE(passes(1));
  EXPECT_EQ(stat("store_bytes_used"), 20 * kChunk);
  EXPECT_EQ(stat("store_capacity"), 100 * kChunk);
  EXPECT_EQ(stat("chunks_evicted"), 0U);
  EXPECT_EQ(present(20), 20U);
}

TEST_F(HousekeeperTest, TheLeastRecentlyUsedGoDownToTheLowMarkWhoeversTheyAre) {
  put(1, 110);
  tree.put(111, kChunk, 2h, 2, 3);    // another namespace's, used between ours
  tree.put(112, kChunk, 500h, 3, 0);  // and an old one's
  start(100);
  ASSERT_TRUE(eventually([&] { return stat("store_bytes_used") == 95 * kChunk; }));
  EXPECT_EQ(stat("chunks_evicted"), 17U);
  EXPECT_EQ(stat("bytes_evicted"), 17 * kChunk);
  for (std::uint64_t n = 1; n <= 110; ++n) EXPECT_EQ(tree.has(n), n <= 94) << n;
  EXPECT_TRUE(tree.has(111, 2, 3));
  EXPECT_FALSE(tree.has(112, 3, 0));
  EXPECT_EQ(keeper->take_evicted().size(), 16U);  // of this namespace
  EXPECT_TRUE(keeper->take_evicted().empty());
  EXPECT_TRUE(
      eventually([&] { return !std::filesystem::exists(tree.root() + "/v1/evictor.lease"); }));
}

TEST_F(HousekeeperTest, MoreThanTheHeapHoldsIsFoundByScanningAgain) {
  put(1, 200);
  options.candidates = 7;
  start(100);
  ASSERT_TRUE(eventually([&] { return stat("store_bytes_used") == 95 * kChunk; }));
  EXPECT_EQ(stat("chunks_evicted"), 105U);
  EXPECT_GE(stat("housekeeping_passes"), 15U);
  for (std::uint64_t n = 1; n <= 200; ++n) EXPECT_EQ(tree.has(n), n <= 95) << n;
}

TEST_F(HousekeeperTest, WhatLiesWhereTheMountWasIsNeitherCountedNorRemoved) {
  put(1, 20);
  const std::string dead = tree.put_file(tree.paths().unique_temporary(), kChunk, 2h);
  MountPlace other = probe_root(tree.root(), DirectIoChoice::kOff).place;
  other.above = {other.own};
  ++other.own.minor;
  limits.capacity = 10 * kChunk;
  keeper = std::make_unique<Housekeeper>(tree.paths(), other, limits, options);
  ASSERT_TRUE(eventually([&] { return stat("housekeeping_failures") > 3; }));
  EXPECT_EQ(stat("housekeeping_passes"), 0U);
  EXPECT_EQ(stat("store_bytes_used"), 0U);
  EXPECT_EQ(present(20), 20U);
  EXPECT_TRUE(std::filesystem::exists(dead));
}

TEST_F(HousekeeperTest, ForeignFilesAreNeitherCountedNorRemoved) {
  const std::string foreign = tree.put_file(tree.root() + "/v1/precious", 300 * kChunk, 9999h);
  const std::string noted =
      tree.put_file(tree.paths().temporary_directory() + "/notes", kChunk, 9999h);
  put(1, 110);
  start(100);
  ASSERT_TRUE(eventually([&] { return stat("store_bytes_used") == 95 * kChunk; }));
  EXPECT_TRUE(std::filesystem::exists(foreign));
  EXPECT_TRUE(std::filesystem::exists(noted));
}

TEST_F(HousekeeperTest, AbandonedTemporariesOfAnyRankAreSweptAndYoungOnesCounted) {
  const auto temporary = [&](std::uint64_t name, std::chrono::hours age) {
    make_tree(tree.paths(name, 1));
    return tree.put_file(tree.paths(name, 1).unique_temporary(), kChunk, age);
  };
  const std::string dead = temporary(5, 2h);
  const std::string alive = temporary(6, 0h);
  start(100);
  ASSERT_TRUE(passes(1));
  EXPECT_FALSE(std::filesystem::exists(dead));
  EXPECT_TRUE(std::filesystem::exists(alive));
  EXPECT_EQ(stat("temporaries_removed"), 1U);
  EXPECT_EQ(stat("store_bytes_used"), kChunk);
}

TEST_F(HousekeeperTest, AnAbandonedFileBesideChunksIsSweptAndTheChunksStay) {
  put(1, 1);
  const std::string dead =
      tree.put_file(tree.paths().unique_temporary(ChunkTree::key(1)), kChunk, 2h);
  const std::string alive =
      tree.put_file(tree.paths().unique_temporary(ChunkTree::key(1)), kChunk, 0h);
  start(100);
  ASSERT_TRUE(passes(1));
  EXPECT_FALSE(std::filesystem::exists(dead));
  EXPECT_TRUE(std::filesystem::exists(alive));
  EXPECT_TRUE(tree.has(1));
  EXPECT_EQ(stat("store_bytes_used"), 2 * kChunk);
}

TEST_F(HousekeeperTest, TemporariesAreSweptAgainAndAgain) {
  options.scan_interval = 10ms;
  start(0);
  ASSERT_TRUE(passes(1));
  const std::string dead = tree.put_file(tree.paths().unique_temporary(), kChunk, 2h);
  EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(dead); }));
}

TEST_F(HousekeeperTest, WhatAWrongClockStampedGoesFirstTailsBeforeHeads) {
  put(1, 100);
  for (std::uint64_t n = 101; n <= 110; ++n) {
    tree.put(n, kChunk, -std::chrono::hours(24 * 365) + std::chrono::minutes(n));
  }
  start(100);
  ASSERT_TRUE(eventually([&] { return stat("store_bytes_used") == 95 * kChunk; }));
  EXPECT_EQ(present(94), 94U) << "none but the oldest that a right clock stamped";
  EXPECT_FALSE(tree.has(110));
  EXPECT_FALSE(tree.has(101));
}

TEST_F(HousekeeperTest, OfWhatAWrongClockStampedTailsGoBeforeHeads) {
  for (std::uint64_t n = 1; n <= 110; ++n) {
    tree.put(n, kChunk, -std::chrono::hours(24 * 365) + std::chrono::minutes(n));
  }
  start(100);
  ASSERT_TRUE(eventually([&] { return stat("store_bytes_used") == 95 * kChunk; }));
  for (std::uint64_t n = 1; n <= 110; ++n) EXPECT_EQ(tree.has(n), n <= 95) << n;
}

TEST_F(HousekeeperTest, ATemporaryOfTheFutureIsSweptOnceNobodyHasWrittenToItForTheTime) {
  options.scan_interval = 10ms;
  options.abandoned_after = 1s;
  const std::string dead = tree.put_file(tree.paths().unique_temporary(), kChunk, -9999h);
  start(100);
  ASSERT_TRUE(passes(2));
  EXPECT_TRUE(std::filesystem::exists(dead));
  EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(dead); }));
}

TEST_F(HousekeeperTest, FilesOfOtherProcessesAreSeenByTheNextScan) {
  options.scan_interval = 10ms;
  start(100);
  ASSERT_TRUE(passes(1));
  put(1, 150);
  EXPECT_TRUE(eventually([&] { return present(150) <= 97; }));
  EXPECT_GE(present(150), 95U);
}

TEST_F(HousekeeperTest, WhatWasTouchedAMomentAgoIsSparedThoughItsStampIsTheOldest) {
  options.spared = 10s;
  put(1, 110);
  std::this_thread::sleep_for(10100ms);
  ChunkTree::set_used(tree.paths().chunk(ChunkTree::key(110)), 500h);
  start(100);
  ASSERT_TRUE(eventually([&] { return present(110) == 95; }));
  EXPECT_TRUE(tree.has(110));
  EXPECT_FALSE(tree.has(95));
}

TEST_F(HousekeeperTest, ByReuseWhatIsOnlyKnownByItsLastUseGoesInThatOrder) {
  options.order = EvictionOrder::kReuse;
  put(1, 110);
  start(100);
  ASSERT_TRUE(eventually([&] { return stat("store_bytes_used") == 95 * kChunk; }));
  // Deep and shallow ones of about one age differ a little as soon as there is something to count,
  // which there is where a scan takes long.
  EXPECT_EQ(present(60), 60U);
}

TEST_F(HousekeeperTest, AScanServesSeveralPassesWhereItTakesLong) {
  options.order = EvictionOrder::kReuse;
  // So many files that a pass right after the last one finds its scan still good.
  put(1, 2000);
  start(2000);
  ASSERT_TRUE(eventually([&] { return present(2000) == 1900; }));
  const std::uint64_t scans = stat("housekeeping_passes");
  EXPECT_FALSE(keeper->space().has_room(150 * kChunk));
  EXPECT_TRUE(eventually([&] { return present(2000) == 1850; }));
  EXPECT_LE(stat("housekeeping_passes"), scans + 1);
  EXPECT_EQ(stat("chunks_evicted"), 150U);
}

TEST_F(HousekeeperTest, WhatWasNotUsedForTooLongGoesThoughThereIsRoom) {
  options.max_age = std::chrono::hours(100) + 30min;
  put(1, 110);
  start(0);
  EXPECT_TRUE(eventually([&] { return stat("chunks_evicted_age") == 10; }));
  for (std::uint64_t n = 1; n <= 110; ++n) EXPECT_EQ(tree.has(n), n <= 100) << n;
  EXPECT_EQ(stat("chunks_evicted"), 10U);
  EXPECT_EQ(stat("chunks_evicted_capacity"), 0U);
  EXPECT_TRUE(eventually([&] { return stat("store_bytes_used") == 100 * kChunk; }));
}

TEST_F(HousekeeperTest, WhatIsTooOldGoesFirstAndCountsTowardsTheRoomThatIsMade) {
  options.max_age = std::chrono::hours(104) + 30min;
  put(1, 110);
  start(100);
  ASSERT_TRUE(eventually([&] { return stat("store_bytes_used") == 95 * kChunk; }));
  EXPECT_EQ(stat("chunks_evicted_age"), 6U);
  EXPECT_EQ(stat("chunks_evicted_capacity"), 9U);
  EXPECT_EQ(present(95), 95U);
}

TEST_F(HousekeeperTest, WhatBecomesTooOldLaterGoesLater) {
  options.max_age = 2s;
  options.scan_interval = 10ms;
  tree.put(1, kChunk, 0h);
  start(0);
  ASSERT_TRUE(passes(1));
  EXPECT_TRUE(tree.has(1));
  EXPECT_TRUE(eventually([&] { return !tree.has(1); }));
}

TEST_F(HousekeeperTest, AStoreThatDoesNotFitIsMadeRoomForAtOnce) {
  put(1, 97);
  options.sample_interval = 1h;  // nothing is noticed by looking now and then
  start(100);
  ASSERT_TRUE(passes(1));
  EXPECT_FALSE(keeper->space().has_room(10 * kChunk));
  EXPECT_TRUE(eventually([&] { return keeper->space().has_room(10 * kChunk); }));
  EXPECT_EQ(present(97), 90U);
}

TEST_F(HousekeeperTest, AFullDiskMakesRoomWithoutALimit) {
  put(1, 40);
  start(0);
  ASSERT_TRUE(passes(1));
  keeper->space().met_full_disk(kChunk, true);
  EXPECT_TRUE(eventually([&] { return present(40) == 24; }));
  EXPECT_TRUE(eventually([&] { return stat("chunks_evicted_full_disk") == 16; }));
}

TEST_F(HousekeeperTest, AFullDiskThatHasRoomAgainCostsNothing) {
  put(1, 40);
  start(0);
  ASSERT_TRUE(passes(1));
  keeper->space().met_full_disk(kChunk);  // another rank's pass has helped by now
  EXPECT_TRUE(eventually([&] { return !keeper->space().may_have_excess(); }));
  EXPECT_EQ(present(40), 40U);
}

TEST_F(HousekeeperTest, TheFloorCostsWhatThisEngineStoredAndNoMore) {
  // A little above the floor, so that eviction is due at once and stores are still admitted.
  const auto space =
      filesystem_space(tree.root(), probe_root(tree.root(), DirectIoChoice::kOff).place);
  ASSERT_TRUE(space);
  limits.free_space_floor =
      0.98 * static_cast<double>(space->free) / static_cast<double>(space->total);
  put(1, 10);
  start(0);
  ASSERT_TRUE(passes(1));
  std::this_thread::sleep_for(100ms);  // some looks at the free space
  EXPECT_EQ(present(10), 10U);
  ASSERT_TRUE(keeper->space().try_reserve(3 * kChunk));
  keeper->space().settle(3 * kChunk, true);
  EXPECT_TRUE(eventually([&] { return stat("chunks_evicted_floor") == 3; }));
  EXPECT_EQ(present(10), 7U);
  EXPECT_EQ(stat("chunks_evicted"), 3U);
}

TEST_F(HousekeeperTest, APassEndsAfterSoManyFiles) {
  put(1, 110);
  options.files_per_pass = 4;
  options.sample_interval = 1h;  // the pause between passes, too
  start(100);
  ASSERT_TRUE(passes(1));
  keeper->space().met_full_disk(kPageBytes);  // looks at once
  EXPECT_TRUE(eventually([&] { return stat("chunks_evicted") == 4; }));
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(stat("chunks_evicted_capacity"), 4U);
  EXPECT_EQ(present(110), 106U);
}

TEST_F(HousekeeperTest, WhatCannotBeReadIsNotFilledWithTheBytesOfOthers) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  put(1, 10);
  options.scan_interval = 10ms;
  start(100'000);
  ASSERT_TRUE(passes(1));
  ASSERT_EQ(stat("store_bytes_used"), 10 * kChunk);
  const std::string hidden =
      std::filesystem::path(tree.paths().chunk(ChunkTree::key(3))).parent_path();
  ASSERT_EQ(::chmod(hidden.c_str(), 0), 0);
  const std::string neighbour = tree.put_file(tree.root() + "/neighbour", 500 * kChunk);
  ASSERT_TRUE(passes(stat("housekeeping_passes") + 2));
  std::filesystem::remove(neighbour);
  ASSERT_TRUE(passes(stat("housekeeping_passes") + 2));
  EXPECT_GT(stat("housekeeping_failures"), 1U);
  EXPECT_EQ(stat("store_bytes_used"), 10 * kChunk);
  ASSERT_EQ(::chmod(hidden.c_str(), 0700), 0);
}

TEST_F(HousekeeperTest, TwoOverOneRootDoNotEvictTwice) {
  put(1, 110);
  start(100);
  Housekeeper other(tree.paths(), probe_root(tree.root(), DirectIoChoice::kOff).place, limits,
                    options);
  // Who counts while the other evicts finds up to the mark at which it would begin itself.
  const auto at_rest = [](const Housekeeper& one) {
    const std::uint64_t used = one.stats().at("store_bytes_used");
    return used >= 95 * kChunk && used <= 97 * kChunk;
  };
  const auto evicted = [&] { return stat("chunks_evicted") + other.stats().at("chunks_evicted"); };
  ASSERT_TRUE(eventually([&] { return at_rest(*keeper) && at_rest(other) && evicted() >= 15; }));
  std::this_thread::sleep_for(50ms);  // some looks at the space
  EXPECT_EQ(present(110), 95U);
  EXPECT_EQ(evicted(), 15U);
}

TEST_F(HousekeeperTest, OfTwoLimitsTheSmallerWins) {
  put(1, 110);
  start(100);
  const SpaceLimits smaller{50 * kChunk, 0};
  Housekeeper other(tree.paths(), probe_root(tree.root(), DirectIoChoice::kOff).place, smaller,
                    options);
  EXPECT_TRUE(eventually([&] { return present(110) == 47; }));
}

TEST_F(HousekeeperTest, WhileAnotherHoldsTheLeaseNothingIsEvictedAndADeadOnesIsTakenOver) {
  put(1, 110);
  options.lease_expiry = 400ms;
  test::write_file(tree.root() + "/v1/evictor.lease", {});
  const auto begin = std::chrono::steady_clock::now();
  start(100);
  ASSERT_TRUE(passes(1));
  EXPECT_TRUE(eventually([&] { return present(110) == 95; }));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 400ms);
}

TEST_F(HousekeeperTest, ARootThatVanishesIsCountedAndFoundAgain) {
  options.scan_interval = 10ms;
  start(100);
  ASSERT_TRUE(passes(1));
  std::filesystem::rename(tree.root(), tree.root() + ".away");
  EXPECT_TRUE(eventually([&] { return stat("housekeeping_failures") > 2; }));
  std::filesystem::rename(tree.root() + ".away", tree.root());
  put(1, 150);
  EXPECT_TRUE(eventually([&] { return present(150) <= 97; }));
  EXPECT_GE(present(150), 95U);
}

TEST_F(HousekeeperTest, ItEndsAtOnceInTheMiddleOfAScan) {
  // So many names of one file that a scan takes far longer than to stop it.
  const std::filesystem::path first = tree.put(1, kPageBytes, 1h);
  const std::string digits = first.filename().string().substr(0, 3);
  for (int n = 0; n < 30'000; ++n) {
    std::string hex = std::to_string(n);
    hex.insert(0, 61 - hex.size(), '0');
    std::filesystem::create_hard_link(first, first.parent_path() / (digits + hex + ".kv"));
  }
  start(100'000);
  ASSERT_TRUE(passes(1));
  for (int round = 0; round < 10; ++round) {
    start(100'000);
    keeper->stop();
    EXPECT_EQ(stat("housekeeping_passes"), 0U);
    EXPECT_FALSE(keeper->space().has_room(1)) << "nothing is known of what is there";
  }
}

}  // namespace
}  // namespace lmkv
