// Loads that take too long, that nobody waits for any more, or that want more than their share.
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <string>
#include <vector>

#include "engine_fixture.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::blocks_from;
using test::ids;
using test::kBlocksPerChunk;
using test::key;

class LoadLimits : public test::EngineTest {
 protected:
  void SetUp() override {
    start();
    store(1, ids({0, 1, 2, 3}));
    store(2, ids({4, 5, 6, 7}));
    expected_ = bytes_of(ids({0, 1, 2, 3}));
  }
  void wait_for_slabs() {
    EXPECT_TRUE(eventually([this] { return stat("slabs_in_use") == 0; }));
    expect_all_slabs_back();
  }
  std::vector<std::byte> expected_;
};

TEST_P(LoadLimits, ALoadPastItsTimeIsGivenUpAndWhatComesLateReachesNoBlock) {
  options.load_timeout = 100ms;
  start();
  disk->hold(OperationKind::kRead);
  const JobId job = engine->load({chunk(1, ids({20, 21, 22, 23}))}, 0);
  const std::vector<Completion> done = poll_until_done();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].job, job);
  EXPECT_EQ(done[0].failed_chunks, std::vector<std::size_t>{0});
  EXPECT_NE(done[0].error.find("took longer"), std::string::npos) << done[0].error;
  EXPECT_GT(disk->held(), 0U);
  EXPECT_EQ(stat("loads_timed_out"), 1U);
  EXPECT_EQ(stat("loads_failed"), 1U);
  poison(ids({20, 21, 22, 23}));  // the blocks are another request's now
  const auto poisoned = bytes_of(ids({20, 21, 22, 23}));

  disk->release();
  wait_for_slabs();
  EXPECT_EQ(bytes_of(ids({20, 21, 22, 23})), poisoned);
  EXPECT_EQ(stat("chunks_loaded"), 0U);
  // What arrived is good, and is kept.
  const auto target = ids({30, 31, 32, 33});
  EXPECT_TRUE(load({chunk(1, target)}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(target), expected_);
  EXPECT_EQ(stat("memory_hits"), 1U);
}

TEST_P(LoadLimits, ALoadInTimeIsNotGivenUp) {
  options.load_timeout = 10s;
  start();
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, ids({20, 21, 22, 23}))}, 0);
  std::this_thread::sleep_for(50ms);
  EXPECT_TRUE(engine->poll().empty());
  disk->release();
  const std::vector<Completion> done = finish();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_TRUE(done[0].failed_chunks.empty());
  EXPECT_GE(done[0].seconds, 0.05);
  EXPECT_LE(done[0].seconds, 10.0);
  EXPECT_EQ(bytes_of(ids({20, 21, 22, 23})), expected_);
}

TEST_P(LoadLimits, ACancelledLoadEndsAtOnce) {
  options.host_memory = 2 * slab_bytes_of(options);
  start();
  disk->hold(OperationKind::kRead);
  const JobId job = engine->load({chunk(1, ids({20, 21, 22, 23})), chunk(2, ids({24, 25, 26, 27})),
                                  chunk(3, ids({28, 29, 30, 31}))},
                                 0);
  engine->cancel(job);
  const std::vector<Completion> done = engine->poll();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].failed_chunks, (std::vector<std::size_t>{0, 1, 2}));
  engine->cancel(job);  // it has ended: nothing
  engine->cancel(JobId{12345});
  const auto before = bytes_of(ids({20, 21, 22, 23, 24, 25, 26, 27}));
  disk->release();
  wait_for_slabs();
  EXPECT_EQ(bytes_of(ids({20, 21, 22, 23, 24, 25, 26, 27})), before);
  EXPECT_TRUE(engine->poll().empty());
  EXPECT_EQ(stat("loads_timed_out"), 0U);
  EXPECT_EQ(stat("loads_cancelled"), 3U);
  EXPECT_EQ(stat("loads_failed"), 0U) << "nobody misses them";
}

TEST_P(LoadLimits, ACancelledLoadEndsWhenWhatTheDeviceHasOfItIsDone) {
  start();
  ASSERT_TRUE(load({chunk(1, ids({20, 21, 22, 23}))}).failed_chunks.empty());  // now in memory
  device->hold();
  disk->hold(OperationKind::kRead);
  const auto target = ids({30, 31, 32, 33});
  const JobId job = engine->load({chunk(1, target), chunk(2, ids({40, 41, 42, 43}))}, 0);
  ASSERT_EQ(device->held(), 1U);
  engine->cancel(job);
  EXPECT_TRUE(engine->poll().empty()) << "the device may still write to blocks of it";
  device->release();
  const std::vector<Completion> done = poll_until_done();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].failed_chunks, std::vector<std::size_t>{1});
  EXPECT_EQ(done[0].cancelled_chunks, std::vector<std::size_t>{1});
  EXPECT_EQ(done[0].memory_chunks, std::vector<std::size_t>{0});
  EXPECT_EQ(bytes_of(target), expected_);
  disk->release();
  wait_for_slabs();
}

TEST_P(LoadLimits, AShortLoadIsNotKeptWaitingByALongOne) {
  for (std::uint64_t k = 10; k < 30; ++k) store(k, ids({0, 1, 2, 3}));
  options.host_memory = 2 * slab_bytes_of(options);
  std::mutex mutex;
  std::vector<std::string> opened;
  start([&](Operation& operation) -> std::optional<int> {
    if (operation.kind == OperationKind::kOpen) {
      const std::lock_guard lock(mutex);
      opened.emplace_back(operation.path);
    }
    return std::nullopt;
  });
  disk->hold(OperationKind::kRead);
  std::vector<LoadChunk> many;
  for (std::uint32_t k = 10; k < 30; ++k) many.push_back(chunk(k, blocks_from(4 * k)));
  engine->load(std::move(many), 0);
  engine->load({chunk(1, ids({30, 31, 32, 33})), chunk(2, ids({34, 35, 36, 37}))}, 0);
  disk->release();
  EXPECT_EQ(finish().size(), 2U);
  ASSERT_EQ(opened.size(), 22U);
  const auto place = [&](std::uint64_t k) {
    return std::ranges::find(opened, path_of(k)) - opened.begin();
  };
  EXPECT_LE(place(1), 4);
  EXPECT_LE(place(2), 6);
  expect_all_slabs_back();
}

TEST_P(LoadLimits, StoresToADiskThatHangsLeaveSlabsForLoads) {
  start();
  disk->hold(OperationKind::kWrite);
  const std::uint64_t slabs = stat("slabs_total");
  std::uint64_t accepted = 0;
  for (std::uint64_t k = 100; k < 100 + 2 * slabs; ++k) {
    if (engine->store(key(k), k * 64, ids({0, 1, 2, 3}), 0)) ++accepted;
  }
  EXPECT_EQ(accepted, slabs - slabs / 4);
  EXPECT_EQ(stat("stores_dropped"), 2 * slabs - accepted);
  const auto target = ids({30, 31, 32, 33});
  engine->load({chunk(1, target)}, 0);
  EXPECT_TRUE(eventually([this] { return stat("chunks_loaded") == 1; }));
  EXPECT_EQ(bytes_of(target), expected_);
  disk->release();
  finish();
  expect_all_slabs_back();
  EXPECT_EQ(stat("chunks_stored"), accepted);
}

TEST_P(LoadLimits, OfTwoSlabsStoresLeaveOne) {
  options.host_memory = 2 * slab_bytes_of(options);
  start();
  disk->hold(OperationKind::kWrite);
  EXPECT_TRUE(engine->store(key(100), 0, ids({0, 1, 2, 3}), 0));
  EXPECT_FALSE(engine->store(key(101), 0, ids({0, 1, 2, 3}), 0));
  engine->load({chunk(1, ids({30, 31, 32, 33}))}, 0);
  EXPECT_TRUE(eventually([this] { return stat("chunks_loaded") == 1; }));
  disk->release();
  finish();
}

TEST_P(LoadLimits, ADirectoryThatHangsIsTakenOutOfServiceAndComesBack) {
  options.load_timeout = 50ms;
  start();
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, ids({20, 21, 22, 23}))}, 0);
  ASSERT_EQ(poll_until_done().size(), 1U);
  EXPECT_EQ(stat("loads_out_of_service"), 1U);
  EXPECT_NE(engine->info().at("roots_out").find("too long"), std::string::npos);
  // The next load does not wait for its time to be over, nor does it reach the disk.
  const std::size_t held = disk->held();
  engine->load({chunk(2, ids({20, 21, 22, 23}))}, 0);
  const std::vector<Completion> refused = engine->poll();
  ASSERT_EQ(refused.size(), 1U);
  EXPECT_NE(refused[0].error.find("out of service"), std::string::npos);
  EXPECT_EQ(disk->held(), held);
  EXPECT_EQ(stat("loads_refused"), 1U);
  EXPECT_EQ(stat("stores_out_of_service"), 0U);

  disk->release();
  wait_for_slabs();
  EXPECT_EQ(stat("loads_out_of_service"), 0U) << "a read that succeeds late says so";
  const auto target = ids({30, 31, 32, 33});
  EXPECT_TRUE(load({chunk(1, target)}).failed_chunks.empty());
}

TEST_P(LoadLimits, ADirectoryThatHangsIsFoundOutThoughNobodyWaitsSoLong) {
  options.load_timeout = 200ms;
  start();
  disk->hold(OperationKind::kRead);
  for (std::uint64_t k = 1; k <= 2; ++k) {
    engine->cancel(engine->load({chunk(k, ids({20, 21, 22, 23}))}, 0));
  }
  EXPECT_EQ(engine->poll().size(), 2U);
  EXPECT_EQ(stat("loads_out_of_service"), 0U) << "it may only be slow";
  EXPECT_TRUE(eventually([this] {
    EXPECT_TRUE(engine->poll().empty());
    return stat("loads_out_of_service") == 1;
  }));
  EXPECT_EQ(stat("loads_timed_out"), 0U);
  disk->release();
  wait_for_slabs();
  EXPECT_EQ(stat("loads_out_of_service"), 0U);
}

TEST_P(LoadLimits, WhatFailedBeforeALoadWasCancelledIsToldFromWhatWasGivenUp) {
  start();
  disk->hold(OperationKind::kRead);
  const JobId job =
      engine->load({chunk(99, ids({30, 31, 32, 33})), chunk(2, ids({40, 41, 42, 43}))}, 0);
  ASSERT_TRUE(eventually([this] { return stat("chunks_missing") == 1; }));
  engine->cancel(job);
  const std::vector<Completion> done = engine->poll();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].failed_chunks, (std::vector<std::size_t>{0, 1}));
  EXPECT_EQ(done[0].cancelled_chunks, std::vector<std::size_t>{1});
  disk->release();
  wait_for_slabs();
}

TEST_P(LoadLimits, ACancelledLoadSaysNothingOfADirectoryThatAnswers) {
  options.load_timeout = 20ms;
  start();
  disk->hold(OperationKind::kRead);
  engine->cancel(engine->load({chunk(1, ids({20, 21, 22, 23}))}, 0));
  disk->release();
  wait_for_slabs();
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(engine->poll().size(), 1U);
  EXPECT_EQ(stat("loads_out_of_service"), 0U);
}

TEST_P(LoadLimits, CloseReturnsInTimeWhateverTheDiskDoes) {
  start();
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, ids({20, 21, 22, 23}))}, 0);
  EXPECT_FALSE(engine->close(100ms));
  EXPECT_EQ(engine->poll().size(), 1U) << "its loads have ended";
  disk->release();
  EXPECT_TRUE(engine->close(20s));
  EXPECT_TRUE(engine->close(0s)) << "it is closed";
}

INSTANTIATE_TEST_SUITE_P(Both, LoadLimits, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
