// Engines that share an arena: what one brings, the others wait for, for a while.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <vector>

#include "arena/arena_view.hpp"
#include "engine_fixture.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::blocks_from;
using test::ids;
using test::key;

class ArenaEngines : public test::EngineTest {
 protected:
  void SetUp() override {
    start();  // with memory of its own
    store(1, ids({0, 1, 2, 3}));
    expected_ = bytes_of(ids({0, 1, 2, 3}));
    options.arena_directory = memory_.path();
    start();
    other_ = std::make_unique<Engine>(options, make_parts(options));
    ASSERT_EQ(engine->info().at("arena_error"), "");
    ASSERT_EQ(other_->info().at("arena_error"), "");
  }
  // Polls as vLLM does.
  static Completion completed(Engine& by) {
    std::vector<Completion> done;
    EXPECT_TRUE(eventually([&] {
      done = by.poll();
      return !done.empty();
    }));
    return done.at(0);
  }
  static std::uint64_t count(const Engine& by, const std::string& name) {
    return by.stats().at(name);
  }

  test::TemporaryDirectory memory_{"/dev/shm"};
  std::vector<std::byte> expected_;
  std::unique_ptr<Engine> other_;
};

TEST_P(ArenaEngines, WhatOneReadsTheOtherWaitsFor) {
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  other_->load({chunk(1, blocks_from(30))}, 0);
  std::this_thread::sleep_for(50ms);
  EXPECT_TRUE(other_->poll().empty());
  disk->release();
  const Completion done = completed(*other_);
  EXPECT_EQ(done.memory_chunks, std::vector<std::size_t>{0});
  EXPECT_EQ(bytes_of(blocks_from(30)), expected_);
  EXPECT_EQ(count(*other_, "chunks_awaited"), 1U);
  EXPECT_EQ(count(*other_, "bytes_loaded"), 0U);
  EXPECT_TRUE(completed(*engine).failed_chunks.empty());
}

TEST_P(ArenaEngines, OfTwoLoadsOfOneEngineOneReads) {
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  const std::size_t held = disk->held();
  engine->load({chunk(1, blocks_from(30))}, 0);
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(disk->held(), held);
  disk->release();
  std::size_t done = 0;
  EXPECT_TRUE(eventually([&] { return (done += engine->poll().size()) == 2; }));
  EXPECT_EQ(bytes_of(blocks_from(20)), expected_);
  EXPECT_EQ(bytes_of(blocks_from(30)), expected_);
}

TEST_P(ArenaEngines, WhoeverTakesTooLongIsNotWaitedFor) {
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  other_->load({chunk(1, blocks_from(30))}, 0);
  const Completion done = completed(*other_);
  EXPECT_TRUE(done.failed_chunks.empty());
  EXPECT_TRUE(done.memory_chunks.empty());
  EXPECT_EQ(bytes_of(blocks_from(30)), expected_);
  disk->release();
  EXPECT_TRUE(completed(*engine).failed_chunks.empty());
  EXPECT_EQ(bytes_of(blocks_from(20)), expected_);
}

TEST_P(ArenaEngines, WhatIsReadForNobodyAnyMoreIsForWhoeverWaited) {
  disk->hold(OperationKind::kRead);
  const JobId job = engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  other_->load({chunk(1, blocks_from(30))}, 0);
  engine->cancel(job);
  disk->release();
  EXPECT_TRUE(completed(*other_).failed_chunks.empty());
  EXPECT_EQ(bytes_of(blocks_from(30)), expected_);
}

TEST_P(ArenaEngines, AWaitThatIsCancelledTouchesNoBlock) {
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  const JobId waits = other_->load({chunk(1, blocks_from(30))}, 0);
  poison(blocks_from(30));
  const auto poisoned = bytes_of(blocks_from(30));
  other_->cancel(waits);
  EXPECT_EQ(completed(*other_).cancelled_chunks, std::vector<std::size_t>{0});
  disk->release();
  EXPECT_TRUE(completed(*engine).failed_chunks.empty());
  std::this_thread::sleep_for(20ms);
  static_cast<void>(other_->poll());
  EXPECT_EQ(bytes_of(blocks_from(30)), poisoned);
}

TEST_P(ArenaEngines, AnEngineThatWaitsCloses) {
  disk->hold(OperationKind::kRead);
  engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  other_->load({chunk(1, blocks_from(30))}, 0);
  EXPECT_TRUE(other_->close(10s));
  EXPECT_EQ(count(*other_, "loads_cancelled"), 1U);
  disk->release();
  EXPECT_TRUE(completed(*engine).failed_chunks.empty());
}

TEST_P(ArenaEngines, WhatIsInMemoryIsLoadedWhateverTheDirectoryDoes) {
  EXPECT_TRUE(load({chunk(1, blocks_from(20))}).failed_chunks.empty());
  std::filesystem::remove_all(root.path());
  other_->load({chunk(1, blocks_from(30))}, 0);
  EXPECT_EQ(completed(*other_).memory_chunks, std::vector<std::size_t>{0});
  EXPECT_EQ(bytes_of(blocks_from(30)), expected_);
}

TEST_P(ArenaEngines, AStoredChunkIsNotGatheredTwiceAndHasItsFileAgain) {
  EXPECT_TRUE(load({chunk(1, blocks_from(20))}).failed_chunks.empty());
  std::filesystem::remove(path_of(1));
  ASSERT_TRUE(other_->store(key(1), 64, ids({0, 1, 2, 3}), 0));
  EXPECT_TRUE(other_->drain(20s));
  EXPECT_EQ(count(*other_, "chunks_stored"), 1U);
  EXPECT_TRUE(std::filesystem::exists(path_of(1)));
}

// Or a slow disk would leave the others' loads nothing.
TEST_P(ArenaEngines, StoresOfEachHaveTheirShareOfTheSlabs) {
  const auto slabs = stat("slabs_total");
  ASSERT_GE(slabs, 8U);
  const ArenaPlace place{memory_.path(), slab_bytes_of(options)};
  ASSERT_TRUE(eventually([&] { return report_arena(place)->slots.bare == 0; }));
  disk->hold(OperationKind::kWrite);
  std::uint64_t stored = 0;
  for (std::uint64_t k = 100; k < 100 + slabs; ++k) {
    stored += engine->store(key(k), k * 64, ids({0, 1, 2, 3}), 0).has_value();
  }
  EXPECT_LE(stored, slabs * 3 / 4 / 2);
  EXPECT_GE(stored, slabs / 4);
  EXPECT_TRUE(other_->store(key(1000), 64, ids({0, 1, 2, 3}), 0));
  disk->release();
}

INSTANTIATE_TEST_SUITE_P(Both, ArenaEngines, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
