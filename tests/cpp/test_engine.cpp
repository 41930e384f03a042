#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <limits>
#include <optional>
#include <random>
#include <thread>

#include "chunk_tree.hpp"
#include "engine_fixture.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::blocks_from;
using test::digest_of;
using test::EngineTest;
using test::ids;
using test::kBlocks;
using test::kBlocksPerChunk;
using test::key;
using test::kLayers;
using test::kPage;

TEST_P(EngineTest, AFreshEngineLoadsWhatAnotherStored) {
  start();
  const auto source = ids({7, 3, 60, 0});
  const auto expected = bytes_of(source);
  store(1, source);
  start();
  const auto untouched = bytes_of(ids({14, 15}));
  const auto target = ids({20, 10, 11, 12});
  EXPECT_TRUE(load({chunk(1, target)}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(target), expected);
  EXPECT_EQ(bytes_of(ids({14, 15})), untouched);
  EXPECT_EQ(engine->stats().at("memory_hits"), 0U);
  EXPECT_EQ(engine->stats().at("chunks_loaded"), 1U);
  EXPECT_GT(engine->stats().at("reading_microseconds"), 0U);
  EXPECT_EQ(engine->stats().at("writing_microseconds"), 0U);
  expect_all_slabs_back();
}

TEST_P(EngineTest, ThePayloadOnDiskIsBlockMajor) {
  start();
  const auto source = ids({5, 2, 9, 1});
  store(1, source);
  const std::vector<std::byte> file = test::bytes_of_file(path_of(1));
  const std::vector<std::byte> expected = bytes_of(source);
  ASSERT_GE(file.size(), kHeaderBytes + expected.size());
  EXPECT_EQ(file.size() % kPageBytes, 0U);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), file.begin() + kHeaderBytes));
}

TEST_P(EngineTest, AChunksTailAndItsMiddleCanBeLoaded) {
  start();
  const auto source = ids({1, 2, 3, 4});
  store(1, source);
  start();
  EXPECT_TRUE(load({chunk(1, ids({33, 34}), 1)}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(ids({33, 34})), bytes_of(ids({2, 3})));
}

TEST_P(EngineTest, AShorterChunkIsStoredAndLoaded) {
  start();
  store(1, ids({1, 2}));
  start();
  EXPECT_TRUE(load({chunk(1, ids({40, 41}), 0, 2)}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(ids({40, 41})), bytes_of(ids({1, 2})));
}

TEST_P(EngineTest, AChunkInMemoryIsLoadedWithoutTheDisk) {
  start();
  store(1, ids({1, 2, 3, 4}));
  std::filesystem::remove(path_of(1));
  EXPECT_TRUE(load({chunk(1, ids({50, 51, 52, 53}))}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(ids({50, 51, 52, 53})), bytes_of(ids({1, 2, 3, 4})));
  EXPECT_EQ(engine->stats().at("memory_hits"), 1U);
  EXPECT_EQ(engine->stats().at("bytes_loaded"), 0U);
  EXPECT_EQ(engine->stats().at("reading_microseconds"), 0U);
  EXPECT_GT(engine->stats().at("writing_microseconds"), 0U);
}

TEST_P(EngineTest, AChunkInMemoryWhoseFileWasDeletedIsWrittenAgain) {
  start();
  store(1, ids({1, 2, 3, 4}));
  store(1, ids({1, 2, 3, 4}));
  EXPECT_EQ(engine->stats().at("stores_already_present"), 1U);
  std::filesystem::remove_all(root.path() / "v1");
  store(1, ids({1, 2, 3, 4}));
  EXPECT_EQ(engine->stats().at("chunks_stored"), 2U);
  EXPECT_TRUE(std::filesystem::exists(path_of(1)));
}

TEST_P(EngineTest, SourceBlocksMayBeOverwrittenOnceGatheredIsReported) {
  start();
  const auto source = ids({1, 2, 3, 4});
  const auto expected = bytes_of(source);
  ASSERT_TRUE(engine->store(key(1), 64, source, 0));
  std::vector<Completion> done;
  while (done.empty()) {
    done = engine->poll();
    std::this_thread::yield();
  }
  EXPECT_EQ(done[0].kind, CompletionKind::kGathered);
  poison(source);
  finish();
  start();
  EXPECT_TRUE(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(ids({20, 21, 22, 23})), expected);
}

TEST_P(EngineTest, GatheredIsNotReportedBeforeTheCopy) {
  start();
  device->hold();
  const auto source = ids({1, 2, 3, 4});
  ASSERT_TRUE(engine->store(key(1), 64, source, 0));
  std::this_thread::sleep_for(20ms);
  EXPECT_TRUE(engine->poll().empty());
  // Written before the report, so it must be what is stored: the proof that this test can fail.
  poison(source);
  device->release();
  finish();
  start();
  EXPECT_TRUE(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.empty());
  EXPECT_EQ(page(0, BlockId{20})[0], std::byte{0xEE});
}

TEST_P(EngineTest, WithoutAFreeSlabAStoreIsDroppedAndCounted) {
  options.host_memory = 3 * (kHeaderBytes + round_up_to_page(kBlocksPerChunk * kLayers * kPage));
  start();
  device->hold();
  EXPECT_TRUE(engine->store(key(1), 0, ids({1, 2, 3, 4}), 0));
  EXPECT_TRUE(engine->store(key(2), 0, ids({1, 2, 3, 4}), 0));
  EXPECT_FALSE(engine->store(key(3), 0, ids({1, 2, 3, 4}), 0));
  EXPECT_EQ(engine->stats().at("stores_dropped"), 1U);
  device->release();
  finish();
  EXPECT_TRUE(engine->store(key(3), 0, ids({1, 2, 3, 4}), 0));
  finish();
  expect_all_slabs_back();
}

TEST_P(EngineTest, LoadsWaitForASlabAndStoresDoNotOvertakeThem) {
  start();
  for (std::uint64_t k = 1; k <= 6; ++k) store(k, ids({1, 2, 3, 4}));
  options.host_memory = 2 * (kHeaderBytes + round_up_to_page(kBlocksPerChunk * kLayers * kPage));
  start();
  device->hold();
  std::vector<LoadChunk> chunks;
  for (std::uint32_t k = 1; k <= 6; ++k) chunks.push_back(chunk(k, blocks_from(20 + 4 * k)));
  engine->load(std::move(chunks), 0);
  EXPECT_FALSE(engine->store(key(9), 0, ids({1, 2, 3, 4}), 0)) << "a store took a load's slab";
  while (device->held() < 2) std::this_thread::yield();
  device->release();
  const std::vector<Completion> done = finish();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_TRUE(done[0].failed_chunks.empty()) << done[0].error;
  EXPECT_EQ(engine->stats().at("chunks_loaded"), 6U);
  expect_all_slabs_back();
}

TEST_P(EngineTest, AMissingChunkFailsAloneAndTheOthersAreLoaded) {
  start();
  store(1, ids({1, 2, 3, 4}));
  store(3, ids({5, 6, 7, 8}));
  start();
  const Completion done = load({chunk(1, ids({20, 21, 22, 23})), chunk(2, ids({24, 25, 26, 27})),
                                chunk(3, ids({28, 29, 30, 31}))});
  EXPECT_EQ(done.failed_chunks, std::vector<std::size_t>{1});
  EXPECT_FALSE(done.error.empty());
  EXPECT_EQ(bytes_of(ids({28, 29, 30, 31})), bytes_of(ids({5, 6, 7, 8})));
  EXPECT_EQ(engine->stats().at("chunks_missing"), 1U);
  EXPECT_EQ(engine->stats().at("loads_failed"), 1U);
  expect_all_slabs_back();
}

// Whatever stands where the chunk should be: no byte of it arrives, it is counted, it is gone, and
// the chunk can be stored again.
class BadChunk : public EngineTest {
 protected:
  void expect_bad_is_a_miss(const std::function<void(const std::string&)>& spoil) {
    start();
    store(1, ids({1, 2, 3, 4}));
    store(2, ids({5, 6, 7, 8}));
    spoil(path_of(1));
    start();
    const auto target = ids({20, 21, 22, 23});
    const auto before = bytes_of(target);
    EXPECT_EQ(load({chunk(1, target)}).failed_chunks, std::vector<std::size_t>{0});
    EXPECT_EQ(bytes_of(target), before);
    EXPECT_FALSE(std::filesystem::exists(std::filesystem::symlink_status(path_of(1))));
    EXPECT_EQ(engine->stats().at("chunks_bad"), 1U);
    EXPECT_EQ(engine->stats().at("chunks_bad_removed"), 1U);
    expect_all_slabs_back();
    store(1, ids({1, 2, 3, 4}));
    start();
    EXPECT_TRUE(load({chunk(1, target)}).failed_chunks.empty());
    EXPECT_EQ(bytes_of(target), bytes_of(ids({1, 2, 3, 4})));
  }
};

TEST_P(BadChunk, AFlippedByteAnywhere) {
  for (const std::size_t at : {0UL, 100UL, 300UL, 4096UL, 30000UL, 64000UL}) {
    expect_bad_is_a_miss([at](const std::string& path) {
      std::vector<std::byte> bytes = test::bytes_of_file(path);
      bytes.at(at) ^= std::byte{1};
      test::write_file(path, bytes);
    });
    std::filesystem::remove_all(root.path() / "v1");
  }
}

TEST_P(BadChunk, ATruncatedFile) {
  expect_bad_is_a_miss([](const std::string& path) {
    std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4096);
  });
}

TEST_P(BadChunk, AnEmptyFile) {
  expect_bad_is_a_miss([](const std::string& path) { std::filesystem::resize_file(path, 0); });
}

TEST_P(BadChunk, AnotherKeysContent) {
  expect_bad_is_a_miss([this](const std::string& path) {
    std::filesystem::copy_file(path_of(2), path, std::filesystem::copy_options::overwrite_existing);
  });
}

TEST_P(BadChunk, ADirectory) {
  expect_bad_is_a_miss([](const std::string& path) {
    std::filesystem::remove(path);
    std::filesystem::create_directory(path);
  });
}

TEST_P(BadChunk, ASymbolicLinkEvenToTheRightBytes) {
  expect_bad_is_a_miss([this](const std::string& path) {
    std::filesystem::rename(path, root / "moved");
    std::filesystem::create_symlink(root / "moved", path);
  });
}

TEST_P(EngineTest, AFileThatCannotBeOpenedIsAFailureThatRemovesNothing) {
  start();
  store(1, ids({1, 2, 3, 4}));
  start([](Operation& op) -> std::optional<int> {
    return op.kind == OperationKind::kOpen ? std::optional<int>(-EACCES) : std::nullopt;
  });
  const auto target = ids({20, 21, 22, 23});
  const auto before = bytes_of(target);
  EXPECT_EQ(load({chunk(1, target)}).failed_chunks.size(), 1U);
  EXPECT_EQ(bytes_of(target), before);
  EXPECT_TRUE(std::filesystem::exists(path_of(1)));
  EXPECT_EQ(engine->stats().at("chunks_bad"), 0U);
  EXPECT_EQ(engine->stats().at("loads_failed"), 1U);
  expect_all_slabs_back();
}

TEST_P(EngineTest, AFileThatCannotBeReadIsRemovedAndStoredAgain) {
  start();
  store(1, ids({1, 2, 3, 4}));
  std::atomic<bool> damaged{true};
  start([&](Operation& op) -> std::optional<int> {
    return op.kind == OperationKind::kRead && damaged ? std::optional<int>(-EIO) : std::nullopt;
  });
  EXPECT_EQ(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.size(), 1U);
  EXPECT_EQ(engine->stats().at("chunks_bad_removed"), 1U);
  EXPECT_FALSE(std::filesystem::exists(path_of(1)));
  damaged = false;
  store(1, ids({1, 2, 3, 4}));
  EXPECT_TRUE(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.empty());
}

TEST_P(EngineTest, AChunkInMemoryIsCheckedForTheShapeThatIsAskedFor) {
  start();
  store(1, ids({1, 2}));  // two blocks under this key, in memory and on disk
  const auto target = ids({20, 21, 22, 23});
  const auto before = bytes_of(target);
  EXPECT_EQ(load({chunk(1, target)}).failed_chunks.size(), 1U);
  EXPECT_EQ(bytes_of(target), before);
  EXPECT_EQ(engine->stats().at("memory_hits"), 0U);
}

TEST_P(EngineTest, WhereAMountHasVanishedItsMountPointIsNotFilled) {
  start();
  store(1, ids({1, 2, 3, 4}));
  std::filesystem::remove_all(root.path() / "v1");
  start();
  std::filesystem::remove_all(root.path() / "v1");
  EngineParts parts = make_parts(options);
  MountPlace& place = parts.roots[0].probe.place;
  place.above = {place.own};
  place.own.minor += 1;  // what was there at the start is no longer there
  std::filesystem::remove_all(root.path() / "v1");
  engine = std::make_unique<Engine>(options, std::move(parts));
  ASSERT_TRUE(engine->store(key(1), 64, ids({1, 2, 3, 4}), 0));
  finish();
  EXPECT_EQ(engine->stats().at("stores_failed"), 1U);
  EXPECT_FALSE(std::filesystem::exists(root.path() / "v1"));
  expect_all_slabs_back();
}

TEST_P(EngineTest, AClosedEngineDropsStoresAndFailsLoads) {
  start();
  store(1, ids({1, 2, 3, 4}));
  ASSERT_TRUE(engine->close(20s));
  EXPECT_FALSE(engine->store(key(1), 64, ids({1, 2, 3, 4}), 0)) << "though it is in memory";
  EXPECT_EQ(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.size(), 1U);
  expect_all_slabs_back();
}

TEST_P(EngineTest, DrainTakesAnyTimeout) {
  start();
  device->hold();
  ASSERT_TRUE(engine->store(key(1), 64, ids({1, 2, 3, 4}), 0));
  EXPECT_FALSE(engine->drain(0s));
  EXPECT_FALSE(engine->drain(-1s));
  std::thread releaser([this] {
    std::this_thread::sleep_for(20ms);
    device->release();
  });
  const std::chrono::duration<double> forever(std::numeric_limits<double>::infinity());
  EXPECT_TRUE(engine->drain(forever));
  releaser.join();
}

TEST_P(EngineTest, AFullDiskFailsStoresAndLoadsGoOn) {
  start();
  store(1, ids({1, 2, 3, 4}));
  std::atomic<bool> full{true};
  start([&](Operation& op) -> std::optional<int> {
    return op.kind == OperationKind::kAllocate && full ? std::optional<int>(-ENOSPC) : std::nullopt;
  });
  ASSERT_TRUE(engine->store(key(2), 0, ids({5, 6, 7, 8}), 0));
  const std::vector<Completion> done = finish();
  ASSERT_EQ(done.size(), 2U);
  EXPECT_EQ(done[0].error, "");
  EXPECT_NE(done[1].error, "");
  EXPECT_EQ(engine->stats().at("stores_failed"), 1U);
  EXPECT_TRUE(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.empty());
  full = false;
  store(2, ids({5, 6, 7, 8}));
  expect_all_slabs_back();
}

TEST_P(EngineTest, AFailedGatherStoresNothing) {
  start();
  device->hold();
  ASSERT_TRUE(engine->store(key(1), 0, ids({1, 2, 3, 4}), 0));
  device->fail("no such GPU");
  const std::vector<Completion> done = finish();
  ASSERT_EQ(done.size(), 2U);
  EXPECT_EQ(done[0].error, "no such GPU");
  EXPECT_FALSE(std::filesystem::exists(path_of(1)));
  EXPECT_EQ(engine->stats().at("gathers_failed"), 1U);
  expect_all_slabs_back();
}

TEST_P(EngineTest, AFailedScatterIsAFailedChunk) {
  start();
  store(1, ids({1, 2, 3, 4}));
  device->hold();
  engine->load({chunk(1, ids({20, 21, 22, 23}))}, 0);
  device->fail("no such GPU");
  const std::vector<Completion> done = finish();
  EXPECT_EQ(done.at(0).failed_chunks.size(), 1U);
  expect_all_slabs_back();
}

TEST_P(EngineTest, RefusesWhatIsOutOfRange) {
  start();
  EXPECT_THROW(engine->store(key(1), 0, ids({1, 2, 3, kBlocks}), 0), std::invalid_argument);
  EXPECT_THROW(engine->store(key(1), 0, {}, 0), std::invalid_argument);
  EXPECT_THROW(engine->store(key(1), 0, ids({1, 2, 3, 4, 5}), 0), std::invalid_argument);
  EXPECT_THROW(engine->load({chunk(1, ids({1, 2}), 3)}, 0), std::invalid_argument);
  EXPECT_THROW(engine->load({}, 0), std::invalid_argument);
  options.host_memory = 100000;
  EXPECT_THROW(start(), std::invalid_argument);
}

TEST_P(EngineTest, CloseWithWorkInEveryStageLosesNothingAndHangsNever) {
  start();
  for (std::uint64_t k = 1; k <= 4; ++k) store(k, ids({1, 2, 3, 4}));
  for (int round = 0; round < 10; ++round) {
    options.host_memory = 3 * (kHeaderBytes + round_up_to_page(kBlocksPerChunk * kLayers * kPage));
    start();
    for (std::uint32_t k = 1; k <= 4; ++k) engine->load({chunk(k, blocks_from(20 + 4 * k))}, 0);
    for (std::uint64_t k = 10; k < 14; ++k) engine->store(key(k), 0, ids({1, 2, 3, 4}), 0);
    ASSERT_TRUE(engine->close(20s));
    EXPECT_EQ(engine->stats().at("jobs_in_flight"), 0U);
    expect_all_slabs_back();
    EXPECT_FALSE(engine->store(key(99), 0, ids({1, 2, 3, 4}), 0));
  }
}

TEST_P(EngineTest, ARandomMixOfStoresAndLoadsNeverLoadsAWrongByte) {
  options.host_memory = 6 * (kHeaderBytes + round_up_to_page(kBlocksPerChunk * kLayers * kPage));
  std::mt19937 random(7);
  start([&random, faults = std::mt19937(8)](Operation& op) mutable -> std::optional<int> {
    const auto dice = faults() % 160;
    if (dice == 0) return -EIO;  // so rarely that three in a row do not end the service
    if (dice < 5) return -EAGAIN;
    const bool transfers = op.kind == OperationKind::kRead || op.kind == OperationKind::kWrite;
    if (dice < 32 && transfers && op.length > kPageBytes) op.length = kPageBytes;
    return std::nullopt;
  });
  // Key k is always made from blocks 4k..4k+3 (0 <= k < 8); loads go to blocks 32..63.
  for (int round = 0; round < 900; ++round) {
    if (round % 20 == 0) finish();  // on a busy machine the stores would not get their turn
    const auto k = static_cast<std::uint32_t>(random() % 8);
    if (random() % 2 == 0) {
      engine->store(key(k), k * 64, ids({4 * k, 4 * k + 1, 4 * k + 2, 4 * k + 3}), 0);
      continue;
    }
    const std::uint32_t at = 32 + 4 * static_cast<std::uint32_t>(random() % 8);
    const auto target = ids({at, at + 1, at + 2, at + 3});
    poison(target);
    const JobId job = engine->load({chunk(k, target)}, 0);
    std::optional<Completion> loaded;
    while (!loaded) {
      for (Completion& done : engine->poll()) {
        if (done.kind == CompletionKind::kLoaded && done.job == job) loaded = std::move(done);
      }
    }
    if (loaded->failed_chunks.empty()) {
      EXPECT_EQ(bytes_of(target), bytes_of(ids({4 * k, 4 * k + 1, 4 * k + 2, 4 * k + 3})));
    } else {
      EXPECT_EQ(page(0, target[0])[0], std::byte{0xEE});
    }
  }
  finish();
  const auto stats = engine->stats();
  EXPECT_GT(stats.at("chunks_loaded"), 20U);
  EXPECT_GT(stats.at("stores_failed") + stats.at("loads_failed"), 2U);
  expect_all_slabs_back();
}

// ---- Space and use

TEST_P(EngineTest, AStoredChunkCarriesItsRequestsTimeLessItsDepth) {
  start();
  const UseTime used = std::chrono::system_clock::now() - 3min;
  // The tail first, and the head a tick later: the order of writing does not matter.
  ASSERT_TRUE(engine->store(key(2), 64, ids({5, 6, 7, 8}), 0, used));
  ASSERT_TRUE(engine->store(key(1), 0, ids({1, 2, 3, 4}), 0, used));
  finish();
  EXPECT_EQ(test::modified_ns(path_of(1)), use_stamp(used, 0));
  EXPECT_EQ(test::modified_ns(path_of(2)), use_stamp(used, 64));
}

TEST_P(EngineTest, ALoadFromTheDirectoryOrFromMemoryRenewsTheFile) {
  start();
  store(1, ids({1, 2, 3, 4}));
  for (const bool in_memory : {true, false}) {
    if (!in_memory) start();
    test::ChunkTree::set_used(path_of(1), 5h);
    const std::int64_t before = test::modified_ns(path_of(1));
    const UseTime used = std::chrono::system_clock::now();
    const std::int64_t after = renewed(before, use_stamp(used, 64));
    EXPECT_EQ(use_of(after).again, use_of(before).again + 1);
    engine->load({chunk(1, ids({20, 21, 22, 23}))}, 0, used);
    EXPECT_TRUE(finish().at(0).failed_chunks.empty());
    EXPECT_EQ(engine->stats().at("memory_hits"), in_memory ? 1U : 0U);
    EXPECT_TRUE(test::eventually([&] { return test::modified_ns(path_of(1)) == after; }));
    EXPECT_EQ(engine->stats().at("chunks_touched"), 1U);
  }
}

TEST_P(EngineTest, ManyUsesWithinATickChangeTheFileOnce) {
  start();
  store(1, ids({1, 2, 3, 4}));
  test::ChunkTree::set_used(path_of(1), 5h);
  const UseTime used = std::chrono::system_clock::now();
  const std::int64_t after = renewed(test::modified_ns(path_of(1)), use_stamp(used, 64));
  for (int i = 0; i < 20; ++i) {
    engine->touch({{key(1), 64}, {key(99), 0}}, used);
    ASSERT_TRUE(test::eventually([&] { return test::modified_ns(path_of(1)) == after; }));
  }
  ASSERT_TRUE(engine->close(20s));
  EXPECT_EQ(engine->stats().at("chunks_touched"), 1U);
  EXPECT_EQ(engine->stats().at("touches_failed"), 0U);
}

TEST_P(EngineTest, StoresBeyondTheCapacityAreDroppedAndResumeWhenThereIsRoom) {
  const std::size_t slab = slab_bytes_of(options);
  options.capacity = 4 * slab;
  options.housekeeping.spared = 1h;  // nothing can be evicted
  options.housekeeping.sample_interval = 5ms;
  options.housekeeping.scan_interval = 5ms;
  start();
  ASSERT_TRUE(test::eventually([&] { return engine->stats().at("housekeeping_passes") > 0; }));
  for (std::uint64_t k = 1; k <= 4; ++k) ASSERT_TRUE(stored_in_the_end(k));
  const std::uint64_t before = engine->stats().at("stores_dropped_full");
  EXPECT_FALSE(engine->store(key(5), 0, ids({1, 2, 3, 4}), 0));
  EXPECT_EQ(engine->stats().at("stores_dropped_full"), before + 1);
  EXPECT_EQ(engine->stats().at("stores_dropped"), 0U);
  EXPECT_TRUE(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.empty());
  std::filesystem::remove(path_of(1));
  std::filesystem::remove(path_of(2));
  EXPECT_TRUE(stored_in_the_end(5));
  EXPECT_TRUE(std::filesystem::exists(path_of(5)));
  expect_all_slabs_back();
}

TEST_P(EngineTest, AFillOfManyTimesTheCapacityStaysBelowItAndLosesNothingElse) {
  const std::size_t slab = slab_bytes_of(options);
  options.capacity = 10 * slab;
  options.housekeeping.spared = 0ms;
  options.housekeeping.sample_interval = 5ms;
  start();
  ASSERT_TRUE(test::eventually([&] { return engine->stats().at("housekeeping_passes") > 0; }));
  for (std::uint64_t k = 1; k <= 60; ++k) {
    ASSERT_TRUE(stored_in_the_end(k));
    EXPECT_LE(test::count_files(root.path()), 11U);  // and a lease
  }
  const auto stats = engine->stats();
  EXPECT_EQ(stats.at("chunks_stored"), 60U);
  EXPECT_EQ(stats.at("stores_failed"), 0U);
  EXPECT_GE(stats.at("chunks_evicted"), stats.at("chunks_stored") - 10);
  // A file that is written during a scan may be counted twice until the next.
  EXPECT_LE(stats.at("store_bytes_used"), options.capacity + slab);
}

TEST_P(EngineTest, AWriteThatMeetsAQuotaFailsAndMakesRoom) {
  options.housekeeping.spared = 0ms;
  std::atomic<bool> full{false};
  start([&](Operation& op) -> std::optional<int> {
    return full && op.kind == OperationKind::kAllocate ? std::optional(-EDQUOT) : std::nullopt;
  });
  for (std::uint64_t k = 1; k <= 20; ++k) store(k, ids({1, 2, 3, 4}));
  full = true;
  ASSERT_TRUE(engine->store(key(99), 0, ids({5, 6, 7, 8}), 0));
  EXPECT_FALSE(finish().at(1).error.empty());
  EXPECT_EQ(engine->stats().at("stores_failed"), 1U);
  EXPECT_TRUE(test::eventually([&] { return engine->stats().at("chunks_evicted") == 16; }));
  full = false;
  store(100, ids({1, 2, 3, 4}));
}

TEST_P(EngineTest, LimitsThatCannotWorkAreRefused) {
  options.capacity = slab_bytes_of(options);
  EXPECT_THROW(make_parts(options), std::invalid_argument);
  options.capacity = 0;
  for (const double floor : {-1.0, 91.0, std::numeric_limits<double>::quiet_NaN()}) {
    options.free_space_floor = floor;
    EXPECT_THROW(make_parts(options), std::invalid_argument);
  }
}

INSTANTIATE_TEST_SUITE_P(Both, EngineTest, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);
INSTANTIATE_TEST_SUITE_P(Both, BadChunk, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
