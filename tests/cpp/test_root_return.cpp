// A directory that nobody asks for anything any more comes back into service by itself.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "engine_fixture.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::ids;
using test::key;

TEST(TrialChunk, OneThatIsDamagedForEverDoesNotSpeakForOthers) {
  TrialChunk chunk;
  chunk.worked(key(1), 4096);
  for (int i = 0; i < 4; ++i) chunk.was_bad();
  EXPECT_EQ(chunk.file().key, key(1));
  chunk.was_bad();
  EXPECT_EQ(chunk.file().key, ChunkKey{}) << "nothing has that key, so it is missing: an answer";
  chunk.failed(key(2), 4096);
  EXPECT_EQ(chunk.file().key, key(2));
}

TEST(TrialChunk, IsOneThatFailedOnlyUntilOneHasWorked) {
  TrialChunk chunk;
  EXPECT_EQ(chunk.file().key, ChunkKey{});
  chunk.failed(key(1), 8192);
  EXPECT_EQ(chunk.file().key, key(1));
  chunk.worked(key(2), 12288);
  chunk.failed(key(3), 8192);
  EXPECT_EQ(chunk.file().key, key(2));
  EXPECT_EQ(chunk.file().bytes, 12288U);
}

class RootReturn : public test::EngineTest {
 protected:
  void SetUp() override {
    start();
    for (std::uint64_t k = 0; k < 4; ++k) store(k, ids({0, 1, 2, 3}));
    start([this](Operation& operation) -> std::optional<int> {
      if (operation.kind != OperationKind::kOpen || (operation.flags & O_CREAT) != 0) return {};
      ++opened_;
      return failing_ ? std::optional(-ENOTCONN) : std::nullopt;
    });
  }
  void take_out() {
    for (std::uint64_t k = 0; k < 3; ++k) {
      EXPECT_EQ(load({chunk(k, ids({20, 21, 22, 23}))}).failed_chunks.size(), 1U);
    }
    ASSERT_EQ(stat("loads_out_of_service"), 1U);
    ASSERT_EQ(opened_, 3);
  }
  void poll_for(std::chrono::milliseconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < end) {
      EXPECT_TRUE(engine->poll().empty()) << "a trial is nobody's job";
      std::this_thread::sleep_for(1ms);
    }
  }
  std::atomic<bool> failing_{true};
  std::atomic<int> opened_{0};
};

TEST_P(RootReturn, ItIsTriedWhenItsTimeIsOverAndIsBack) {
  take_out();
  failing_ = false;
  poll_for(1s);
  EXPECT_EQ(opened_, 3) << "its time is not over";
  EXPECT_EQ(engine->info().at("root0_loads_out"),
            engine->info().at("roots_out").substr(options.roots[0].size() + 10));
  EXPECT_TRUE(eventually([this] {
    EXPECT_TRUE(engine->poll().empty());
    return stat("loads_out_of_service") == 0;
  }));
  EXPECT_EQ(opened_, 4);
  EXPECT_EQ(engine->info().count("root0_loads_out"), 0U);
  EXPECT_TRUE(load({chunk(3, ids({20, 21, 22, 23}))}).failed_chunks.empty());
  EXPECT_EQ(stat("chunks_loaded"), 1U) << "a trial is no load";
  expect_all_slabs_back();
}

TEST_P(RootReturn, AsLongAsItFailsItIsTriedAndStaysOut) {
  take_out();
  EXPECT_TRUE(eventually([this] {
    static_cast<void>(engine->poll());
    return opened_ == 4;
  }));
  poll_for(300ms);
  EXPECT_EQ(stat("loads_out_of_service"), 1U);
  EXPECT_EQ(opened_, 4) << "the next trial is later";
  EXPECT_EQ(stat("loads_failed"), 3U);
  expect_all_slabs_back();
}

TEST_P(RootReturn, WhatHangsIsNotTriedAgainWhileAReadIsUnderWay) {
  options.load_timeout = 400ms;  // in which a busy machine opens the file
  start();
  disk->hold(OperationKind::kRead);
  engine->load({chunk(0, ids({20, 21, 22, 23}))}, 0);
  ASSERT_EQ(poll_until_done().size(), 1U);
  ASSERT_EQ(stat("loads_out_of_service"), 1U);
  const std::size_t held = disk->held();
  EXPECT_GT(held, 0U);
  poll_for(2500ms);  // its time is over
  EXPECT_EQ(disk->held(), held);
  EXPECT_EQ(stat("slabs_in_use"), 1U);
  disk->release();
  EXPECT_TRUE(eventually([this] { return stat("loads_out_of_service") == 0; }));
}

TEST_P(RootReturn, AnEngineClosesWhileATrialHangs) {
  take_out();
  failing_ = false;
  disk->hold(OperationKind::kRead);
  EXPECT_TRUE(eventually([this] {
    static_cast<void>(engine->poll());
    return disk->held() > 0;
  }));
  EXPECT_FALSE(engine->close(50ms));
  EXPECT_TRUE(engine->poll().empty());
  disk->release();
  EXPECT_TRUE(engine->close(20s));
  expect_all_slabs_back();
  EXPECT_TRUE(engine->poll().empty());
}

TEST_P(RootReturn, WithoutASlabItWaits) {
  options.host_memory = 2 * slab_bytes_of(options);
  start([this](Operation& operation) -> std::optional<int> {
    if (operation.kind != OperationKind::kOpen || (operation.flags & O_CREAT) != 0) return {};
    ++opened_;
    return failing_ ? std::optional(-ENOTCONN) : std::nullopt;
  });
  take_out();
  store(10, ids({0, 1, 2, 3}));
  store(11, ids({4, 5, 6, 7}));
  failing_ = false;
  device->hold();
  engine->load({chunk(10, ids({20, 21, 22, 23}))}, 0);  // both are in memory
  engine->load({chunk(11, ids({24, 25, 26, 27}))}, 0);
  EXPECT_EQ(device->held(), 2U);
  poll_for(2500ms);
  EXPECT_EQ(opened_, 3);
  device->release();
  EXPECT_TRUE(eventually([this] {
    static_cast<void>(engine->poll());
    return stat("loads_out_of_service") == 0;
  }));
  finish();
  expect_all_slabs_back();
}

INSTANTIATE_TEST_SUITE_P(Both, RootReturn, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
