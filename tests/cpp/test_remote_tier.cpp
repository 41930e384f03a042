// Chunks that a remote tier has: what the directory lacks is loaded from there, and only if it is
// right; what is stored goes there, and nobody waits for it.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "engine_fixture.hpp"
#include "memory_remote.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::blocks_from;
using test::ids;
using test::key;

// One host's engine; another's has another directory and the same remote.
class RemoteEngines : public test::EngineTest {
 protected:
  void SetUp() override {
    options.remote.name = "memory://";
    restart();
  }
  void TearDown() override { stop(); }

  void stop() {
    EXPECT_TRUE(engine == nullptr || engine->close(20s));
    carriers.reset();
    engine.reset();
  }
  void restart() {
    stop();
    start();
    if (options.remote.directory.empty()) carriers.emplace(*engine->remote(), remote);
  }
  // Nothing in its directory, nothing in its memory.
  void move_to_another_host() {
    stop();
    options.roots = {others_root_.path()};
    restart();
  }
  void store_and_move(std::uint64_t k, std::vector<BlockId> blocks) {
    expected = bytes_of(blocks);
    store(k, std::move(blocks));
    EXPECT_TRUE(remote.has(key(k)));
    move_to_another_host();
  }
  // The other one is on its way when it does.
  void load_two_of_which_one_comes() {
    carriers->is_held = true;
    engine->load({chunk(1, blocks_from(0)), chunk(2, blocks_from(4))}, 0);
    ASSERT_TRUE(eventually([this] { return engine->remote()->reads() == 2; }));
    ASSERT_TRUE(eventually([this] { return carriers->orders > 0; }));
    carriers->let_one_through();
    ASSERT_TRUE(eventually([this] { return stat("remote_hits") == 1; }));
    ASSERT_TRUE(eventually([this] { return carriers->orders == 2; }));
    ASSERT_EQ(engine->remote()->reads(), 1U);
  }
  [[nodiscard]] bool has_file(std::uint64_t k) const {
    return std::filesystem::exists(
        ChunkPaths(options.roots[0], options.namespace_digest, 0).chunk(key(k)));
  }

  [[nodiscard]] bool is_out() const { return engine->roots_out_of_service().size() == 1; }

  test::MemoryRemote remote;
  std::optional<test::Carriers> carriers;
  std::vector<std::byte> expected;

 private:
  test::TemporaryDirectory others_root_;
};

TEST_P(RemoteEngines, WhatOneHostStoredAnotherLoadsAndKeeps) {
  store_and_move(1, ids({0, 1, 2, 3}));
  const Completion done = load({chunk(1, blocks_from(20))});
  EXPECT_TRUE(done.failed_chunks.empty()) << done.error;
  EXPECT_EQ(done.remote_chunks, std::vector<std::size_t>{0});
  EXPECT_TRUE(done.memory_chunks.empty());
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  EXPECT_EQ(stat("remote_hits"), 1U);
  EXPECT_EQ(stat("bytes_loaded_remote"), stat("bytes_loaded"));
  EXPECT_EQ(stat("chunks_promoted"), 1U);
  EXPECT_EQ(stat("chunks_missing"), 0U);
  EXPECT_TRUE(has_file(1));
  expect_all_slabs_back();

  // From its own directory the next time.
  restart();
  EXPECT_TRUE(load({chunk(1, blocks_from(10))}).remote_chunks.empty());
  EXPECT_EQ(bytes_of(blocks_from(10)), expected);
  EXPECT_EQ(stat("remote_hits"), 0U);
}

TEST_P(RemoteEngines, WhatNeitherHasIsMissing) {
  const Completion done = load({chunk(1, blocks_from(20))});
  EXPECT_EQ(done.failed_chunks, std::vector<std::size_t>{0});
  EXPECT_EQ(stat("chunks_missing"), 1U);
  EXPECT_EQ(stat("remote_hits"), 0U);
  EXPECT_FALSE(is_out()) << "it has answered";
  expect_all_slabs_back();
}

TEST_P(RemoteEngines, ADamagedChunkReachesNoBlockAndIsRemoved) {
  store_and_move(1, ids({0, 1, 2, 3}));
  const std::vector<std::byte> before = bytes_of(blocks_from(20));
  remote.flip_a_byte(key(1), kHeaderBytes + 7);
  const Completion done = load({chunk(1, blocks_from(20))});
  EXPECT_EQ(done.failed_chunks, std::vector<std::size_t>{0});
  EXPECT_EQ(bytes_of(blocks_from(20)), before);
  EXPECT_EQ(stat("chunks_bad"), 1U);
  EXPECT_EQ(stat("chunks_bad_removed"), 1U);
  EXPECT_FALSE(remote.has(key(1)));
  EXPECT_FALSE(has_file(1)) << "promoted though it is bad";
  EXPECT_FALSE(is_out());
  expect_all_slabs_back();
}

TEST_P(RemoteEngines, ADamagedFileIsReplacedByWhatTheRemoteHas) {
  expected = bytes_of(ids({0, 1, 2, 3}));
  store(1, ids({0, 1, 2, 3}));
  restart();
  std::filesystem::resize_file(path_of(1), 100);
  const Completion done = load({chunk(1, blocks_from(20))});
  EXPECT_TRUE(done.failed_chunks.empty()) << done.error;
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  EXPECT_EQ(stat("chunks_bad"), 1U);
  EXPECT_EQ(stat("chunks_promoted"), 1U);
  restart();
  EXPECT_TRUE(load({chunk(1, blocks_from(10))}).failed_chunks.empty());
  EXPECT_EQ(stat("remote_hits"), 0U);
}

TEST_P(RemoteEngines, AChunkOfAnotherSizeIsBad) {
  store_and_move(1, ids({0, 1, 2, 3}));
  {
    const std::lock_guard lock(remote.mutex);
    remote.chunks.at(key(1)).resize(kPageBytes);
  }
  EXPECT_EQ(load({chunk(1, blocks_from(20))}).failed_chunks.size(), 1U);
  EXPECT_EQ(stat("chunks_bad"), 1U);
  EXPECT_FALSE(remote.has(key(1)));
}

TEST_P(RemoteEngines, OneThatFailsIsLeftAloneAndComesBack) {
  store_and_move(1, ids({0, 1, 2, 3}));
  carriers->fails = true;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(load({chunk(1, blocks_from(20))}).failed_chunks.size(), 1U);
  }
  EXPECT_TRUE(is_out());
  const std::size_t asked = carriers->orders;
  EXPECT_EQ(load({chunk(1, blocks_from(20))}).failed_chunks.size(), 1U);
  EXPECT_EQ(carriers->orders, asked) << "asked though it is out of service";
  EXPECT_NE(engine->info().at("root1_loads_out"), "");
  // The directory goes on.
  store(2, ids({4, 5, 6, 7}));
  EXPECT_TRUE(has_file(2));

  carriers->fails = false;
  EXPECT_TRUE(eventually([this] {
    engine->poll();
    return !is_out();
  }));
  EXPECT_TRUE(load({chunk(1, blocks_from(20))}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
}

TEST_P(RemoteEngines, StoresGoOnWhenItFails) {
  carriers->fails = true;
  for (std::uint64_t k = 1; k <= 5; ++k) store(k, ids({0, 1, 2, 3}));
  EXPECT_EQ(stat("chunks_stored"), 5U);
  EXPECT_EQ(stat("remote_stores_failed"), 3U);
  EXPECT_EQ(stat("remote_stores_dropped"), 2U) << "out of service by then";
  EXPECT_TRUE(has_file(5));
  expect_all_slabs_back();
}

TEST_P(RemoteEngines, OneThatHangsHasNoStoreWaitAndFewSlabs) {
  carriers->is_held = true;
  options.remote.writes = RemoteWrites::kBehind;
  std::size_t stored = 0;
  for (std::uint64_t k = 1; k <= 12; ++k) {
    ASSERT_TRUE(engine->store(key(k), k * 64, ids({0, 1, 2, 3}), 0));
    ASSERT_TRUE(eventually([&] {
      for (const Completion& done : engine->poll()) {
        stored += done.kind == CompletionKind::kStored ? 1U : 0U;
      }
      return stored == k;
    })) << "a store waits for the remote tier";
  }
  EXPECT_EQ(stat("chunks_stored"), 12U);
  const std::size_t most = std::max<std::size_t>(1, stat("slabs_total") / 8);
  EXPECT_LE(stat("slabs_in_use"), most);
  EXPECT_EQ(stat("remote_stores_dropped"), 12 - most);
  carriers->is_held = false;
  EXPECT_TRUE(engine->drain(20s));
  EXPECT_EQ(stat("remote_chunks_stored"), most);
  expect_all_slabs_back();
}

TEST_P(RemoteEngines, ALoadThatHangsIsGivenUpAndTouchesNoBlock) {
  store_and_move(1, ids({0, 1, 2, 3}));
  const std::vector<std::byte> before = bytes_of(blocks_from(20));
  carriers->is_held = true;
  const JobId job = engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return carriers->orders > 0; }));
  engine->cancel(job);
  const std::vector<Completion> done = poll_until_done();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].cancelled_chunks, std::vector<std::size_t>{0});
  carriers->is_held = false;
  EXPECT_TRUE(eventually([this] { return stat("slabs_in_use") == 0; }));
  EXPECT_EQ(bytes_of(blocks_from(20)), before);
}

TEST_P(RemoteEngines, ALoadThatIsQueuedThereIsCancelled) {
  store_and_move(1, ids({0, 1, 2, 3}));
  carriers->is_held = true;
  options.load_timeout = std::chrono::milliseconds(200);
  options.remote.load_depth = 1;
  restart();
  carriers->is_held = true;
  std::vector<LoadChunk> chunks;
  for (std::uint32_t i = 0; i < 4; ++i) chunks.push_back(chunk(1 + i, blocks_from(4 * i)));
  engine->load(std::move(chunks), 0);
  const std::vector<Completion> done = poll_until_done();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].failed_chunks.size(), 4U);
  EXPECT_EQ(stat("loads_timed_out"), 4U);
  EXPECT_TRUE(is_out()) << "it hangs";
  carriers->is_held = false;
  EXPECT_TRUE(engine->drain(20s));
  EXPECT_TRUE(eventually([this] { return stat("slabs_in_use") == 0; }));
}

TEST_P(RemoteEngines, ItIsClosedWhateverIsQueued) {
  carriers->is_held = true;
  for (std::uint64_t k = 1; k <= 4; ++k) {
    (void)engine->store(key(k), k * 64, ids({0, 1, 2, 3}), 0);
  }
  engine->load({chunk(9, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return carriers->orders > 0; }));
  EXPECT_FALSE(engine->close(50ms)) << "an order is under way";
  carriers->is_held = false;
  EXPECT_TRUE(engine->close(20s));
}

TEST_P(RemoteEngines, WrittenThroughAStoreEndsWhenBothHaveIt) {
  options.remote.writes = RemoteWrites::kThrough;
  restart();
  carriers->is_held = true;
  ASSERT_TRUE(engine->store(key(1), 64, ids({0, 1, 2, 3}), 0));
  ASSERT_TRUE(eventually([this] { return carriers->orders > 0; }));
  for (const Completion& done : engine->poll()) EXPECT_EQ(done.kind, CompletionKind::kGathered);
  EXPECT_TRUE(has_file(1));
  carriers->is_held = false;
  EXPECT_EQ(finish().back().kind, CompletionKind::kStored);
  EXPECT_TRUE(remote.has(key(1)));
}

TEST_P(RemoteEngines, OnSecondUseWhatIsUsedAgainGoesThereOnce) {
  options.remote.writes = RemoteWrites::kOnSecondUse;
  restart();
  store(1, ids({0, 1, 2, 3}));
  store(2, ids({4, 5, 6, 7}));
  EXPECT_EQ(carriers->orders, 0U);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(load({chunk(1, blocks_from(20))}).failed_chunks.empty());
  EXPECT_TRUE(remote.has(key(1)));
  EXPECT_FALSE(remote.has(key(2)));
  EXPECT_EQ(carriers->orders, 1U) << "known to be there";
  EXPECT_EQ(stat("remote_chunks_stored"), 1U);
  restart();  // from the directory, not from memory
  EXPECT_TRUE(load({chunk(2, blocks_from(20))}).failed_chunks.empty());
  EXPECT_TRUE(remote.has(key(2)));
}

TEST_P(RemoteEngines, WhatAnotherHostBroughtIsNotBroughtAgain) {
  store_and_move(1, ids({0, 1, 2, 3}));
  store(1, ids({0, 1, 2, 3}));
  EXPECT_EQ(stat("remote_chunks_stored"), 0U);
  EXPECT_EQ(stat("remote_stores_failed"), 0U);
}

TEST_P(RemoteEngines, ASharedDirectoryIsARemoteTierToo) {
  const test::TemporaryDirectory shared;
  options.remote.directory = shared.path();
  restart();
  EXPECT_EQ(engine->remote(), nullptr);
  expected = bytes_of(ids({0, 1, 2, 3}));
  store(1, ids({0, 1, 2, 3}));
  EXPECT_EQ(stat("remote_chunks_stored"), 1U);
  EXPECT_TRUE(std::filesystem::exists(
      ChunkPaths(shared.path(), options.namespace_digest, 0).chunk(key(1))));
  move_to_another_host();
  const Completion done = load({chunk(1, blocks_from(20))});
  EXPECT_EQ(done.remote_chunks, std::vector<std::size_t>{0});
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  EXPECT_EQ(stat("chunks_promoted"), 1U);
  EXPECT_TRUE(has_file(1));
}

TEST_P(RemoteEngines, ADirectoryIsNotBehindItself) {
  options.remote.directory = options.roots[0];
  EXPECT_THROW(make_parts(options), std::invalid_argument);
}

TEST_P(RemoteEngines, WhatNeverCameThereGoesThereWhenItIsUsed) {
  carriers->fails = true;
  store(1, ids({0, 1, 2, 3}));
  carriers->fails = false;
  EXPECT_FALSE(remote.has(key(1)));
  EXPECT_TRUE(load({chunk(1, blocks_from(20))}).failed_chunks.empty());
  EXPECT_TRUE(remote.has(key(1)));
}

TEST_P(RemoteEngines, WhatANetworkDamagedOnceIsNotRemoved) {
  store_and_move(1, ids({0, 1, 2, 3}));
  carriers->flips = 1;
  const Completion done = load({chunk(1, blocks_from(20))});
  EXPECT_TRUE(done.failed_chunks.empty()) << done.error;
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  EXPECT_TRUE(remote.has(key(1)));
  EXPECT_EQ(stat("chunks_bad"), 0U);
}

// As if this host's network card did it.
TEST_P(RemoteEngines, WhereAllArrivesDamagedLittleIsAskedForAndNothingIsLostForOthers) {
  expected = bytes_of(ids({0, 1, 2, 3}));
  for (std::uint64_t k = 1; k <= 6; ++k) store(k, ids({0, 1, 2, 3}));
  move_to_another_host();
  carriers->flips = 1 << 30;
  for (std::uint64_t k = 1; k <= 3; ++k) {
    EXPECT_EQ(load({chunk(k, blocks_from(20))}).failed_chunks.size(), 1U);
  }
  EXPECT_TRUE(is_out());
  EXPECT_EQ(stat("chunks_bad"), 3U);
  EXPECT_EQ(stat("chunks_bad_removed"), 1U) << "it might be that one's own fault";
  const std::size_t asked = carriers->orders;
  EXPECT_EQ(load({chunk(4, blocks_from(20))}).failed_chunks.size(), 1U);
  EXPECT_EQ(carriers->orders, asked) << "asked though all arrives damaged";
  // A trial finds the same.
  EXPECT_TRUE(eventually([&] {
    engine->poll();
    return carriers->orders > asked;
  }));
  EXPECT_FALSE(eventually_within(1s, [&] { return !is_out(); }));

  carriers->flips = 0;
  EXPECT_TRUE(eventually([this] {
    engine->poll();
    return !is_out();
  }));
  EXPECT_TRUE(load({chunk(4, blocks_from(20))}).failed_chunks.empty());
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  EXPECT_TRUE(remote.has(key(2)));
  EXPECT_TRUE(remote.has(key(3)));
}

TEST_P(RemoteEngines, WhereAFailedTransferMayStillWriteNothingEverLies) {
  for (std::uint64_t k = 1; k <= 3; ++k) store(k, ids({0, 1, 2, 3}));
  options.host_memory = 8 * slab_bytes_of(options);
  move_to_another_host();
  expected = bytes_of(ids({0, 1, 2, 3}));
  carriers->is_unsettled = true;
  for (std::uint64_t k = 1; k <= 2; ++k) {
    EXPECT_EQ(load({chunk(k, blocks_from(20))}).failed_chunks.size(), 1U);
  }
  std::byte* const late = carriers->late;
  ASSERT_NE(late, nullptr);
  EXPECT_EQ(stat("slabs_abandoned"), 2U);
  EXPECT_EQ(stat("slabs_in_use"), 2U);
  EXPECT_TRUE(is_out()) << "a quarter of the slabs";
  EXPECT_NE(engine->info().at("root1_loads_out").find("start the engine again"), std::string::npos);
  std::memset(late, 0xee, slab_bytes_of(options));  // it does

  // All that is left of the slabs, some times over.
  for (std::uint64_t k = 11; k <= 30; ++k) store(k, ids({0, 1, 2, 3}));
  for (std::uint64_t k = 11; k <= 30; ++k) {
    std::memset(late, 0xee, slab_bytes_of(options));
    EXPECT_TRUE(load({chunk(k, blocks_from(20))}).failed_chunks.empty());
    EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  }
  carriers->is_unsettled = false;
  std::this_thread::sleep_for(2500ms);
  engine->poll();
  EXPECT_TRUE(engine->drain(20s));
  EXPECT_TRUE(is_out()) << "for good";
  stop();
  std::memset(late, 0xee, options.host_memory / 8);  // even when the engine is gone
}

TEST_P(RemoteEngines, MissesInBetweenDoNotMakeDamageGood) {
  for (std::uint64_t k = 1; k <= 4; ++k) store(k, ids({0, 1, 2, 3}));
  move_to_another_host();
  carriers->flips = 1 << 30;
  for (std::uint64_t k = 1; k <= 3; ++k) {
    EXPECT_EQ(load({chunk(k, blocks_from(20))}).failed_chunks.size(), 1U);
    EXPECT_EQ(is_out(), k == 3);
    EXPECT_EQ(load({chunk(90 + k, blocks_from(20))}).failed_chunks.size(), 1U);
  }
  EXPECT_EQ(stat("chunks_bad_removed"), 1U);
}

// Of a burst that goes wrong no more is lost than was on its way.
TEST_P(RemoteEngines, ABurstOfFailedTransfersLeavesSlabsForTheRest) {
  options.host_memory = 64 * slab_bytes_of(options);
  options.remote.load_depth = 4 * slab_bytes_of(options);
  restart();
  store(100, ids({0, 1, 2, 3}));
  carriers->is_held = true;
  std::vector<LoadChunk> chunks;
  for (std::uint32_t k = 1; k <= 40; ++k) chunks.push_back(chunk(k, blocks_from(0)));
  engine->load(std::move(chunks), 0);
  ASSERT_TRUE(eventually([this] { return carriers->orders > 0; }));
  carriers->is_unsettled = true;
  carriers->is_held = false;
  EXPECT_EQ(finish().at(0).failed_chunks.size(), 40U);
  EXPECT_LE(stat("slabs_abandoned"), 3U + 5U);
  EXPECT_GE(stat("slabs_abandoned"), 3U);
  EXPECT_TRUE(is_out());
  EXPECT_TRUE(load({chunk(100, blocks_from(0))}).failed_chunks.empty());
  store(101, ids({0, 1, 2, 3}));
  // And it comes back.
  carriers->is_unsettled = false;
  EXPECT_TRUE(eventually([this] {
    engine->poll();
    return !is_out();
  }));
}

// What is abandoned, and a disk that hangs.
TEST_P(RemoteEngines, AbandonedSlabsAreTheStoresLoss) {
  options.host_memory = 8 * slab_bytes_of(options);
  restart();
  expected = bytes_of(ids({0, 1, 2, 3}));
  store(1, ids({0, 1, 2, 3}));
  carriers->is_unsettled = true;
  for (std::uint64_t k = 91; k <= 92; ++k) {
    EXPECT_EQ(load({chunk(k, blocks_from(20))}).failed_chunks.size(), 1U);
  }
  ASSERT_EQ(stat("slabs_abandoned"), 2U);
  disk->hold(OperationKind::kWrite);
  for (std::uint64_t k = 11; k <= 20; ++k) {
    (void)engine->store(key(k), k * 64, ids({4, 5, 6, 7}), 0);
  }
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  engine->load({chunk(1, blocks_from(20))}, 0);
  EXPECT_TRUE(eventually_within(3s, [this] {
    for (const Completion& done : engine->poll()) {
      if (done.kind == CompletionKind::kLoaded) return done.failed_chunks.empty();
    }
    return false;
  }));
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  disk->release();
  EXPECT_TRUE(engine->drain(20s));
}

TEST_P(RemoteEngines, WhatOthersHadIsKeptHereOnceLoadsAreOver) {
  for (std::uint64_t k = 1; k <= 2; ++k) store(k, ids({0, 1, 2, 3}));
  options.host_memory = 64 * slab_bytes_of(options);
  move_to_another_host();
  load_two_of_which_one_comes();
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(stat("chunks_promoted"), 0U) << "written while somebody waits for the other one";
  carriers->is_held = false;
  finish();
  EXPECT_EQ(stat("chunks_promoted"), 2U);
  EXPECT_EQ(stat("promotions_dropped"), 0U);
  expect_all_slabs_back();
}

TEST_P(RemoteEngines, WhatOthersHadIsKeptHereThoughLoadsNeverEnd) {
  for (std::uint64_t k = 1; k <= 2; ++k) store(k, ids({0, 1, 2, 3}));
  options.host_memory = 64 * slab_bytes_of(options);
  options.load_timeout = 60s;
  move_to_another_host();
  load_two_of_which_one_comes();
  EXPECT_TRUE(eventually([this] {
    engine->poll();
    return stat("chunks_promoted") == 1;
  }));
  EXPECT_TRUE(carriers->is_held);
  carriers->is_held = false;
  finish();
}

TEST_P(RemoteEngines, WhatWaitsToBeKeptDoesNotKeepItOpen) {
  for (std::uint64_t k = 1; k <= 2; ++k) store(k, ids({0, 1, 2, 3}));
  options.host_memory = 64 * slab_bytes_of(options);
  move_to_another_host();
  load_two_of_which_one_comes();
  EXPECT_FALSE(engine->close(50ms)) << "an order is under way";
  carriers->is_held = false;
  EXPECT_TRUE(engine->close(20s));
  expect_all_slabs_back();
}

TEST_P(RemoteEngines, WhatIsOnItsWayIsNotSentTwice) {
  options.remote.writes = RemoteWrites::kOnSecondUse;
  restart();
  store(1, ids({0, 1, 2, 3}));
  carriers->is_held = true;
  for (int i = 0; i < 3; ++i) {
    engine->load({chunk(1, blocks_from(20))}, 0);
    EXPECT_EQ(poll_until_done().size(), 1U);
  }
  carriers->is_held = false;
  EXPECT_TRUE(engine->drain(20s));
  EXPECT_EQ(carriers->orders, 1U);
  EXPECT_EQ(stat("remote_chunks_stored"), 1U);
  EXPECT_EQ(stat("remote_stores_failed") + stat("remote_stores_dropped"), 0U);
}

// Copies by themselves: what the remote tier is believed to have.
TEST_P(RemoteEngines, WhatIsKnownToBeThereIsForgottenInTimeAndWhenItIsGone) {
  stop();
  EngineContext context(options, make_parts(options));
  TierCopies copies(context);
  const ChunkIdentity identity = context.identity(key(1), 64, test::kBlocksPerChunk);
  {
    std::optional<Slab> slab = context.pool->try_acquire();
    ASSERT_TRUE(slab);
    seal_chunk(slab->bytes(), identity);
    const SharedSlab chunk = context.pool->publish(std::move(*slab), key(1));
  }
  const auto goes_there = [&] {
    const bool goes = copies.begin(*context.remote, identity, 0);
    for (const RemoteOrder& order :
         context.remote_orders->take(RemoteLane::kStores, 1, std::chrono::milliseconds(0))) {
      context.remote_orders->finish(order.ticket, RemoteResult::kMissing, "");
    }
    return goes;
  };
  EXPECT_TRUE(goes_there());
  const auto now = TierCopies::Clock::now();
  copies.note_remote(key(1), now);
  EXPECT_FALSE(goes_there());
  copies.note_gone(key(1));
  EXPECT_TRUE(goes_there());
  copies.note_remote(key(1), now);
  copies.note_remote(key(2), now + std::chrono::minutes(6));
  EXPECT_FALSE(goes_there()) << "still of the older generation";
  copies.note_remote(key(3), now + std::chrono::minutes(12));
  EXPECT_TRUE(goes_there());
  context.device->stop();
  for (Tier* tier : context.tiers()) tier->begin_shutdown();
  for (Tier* tier : context.tiers()) EXPECT_TRUE(tier->wait_idle(20s));
  for (Root* root : context.roots->usable()) root->stop_housekeeping();
}

TEST_P(RemoteEngines, WhatIsThereAlreadyIsAnAnswer) {
  for (std::uint64_t k = 1; k <= 3; ++k) store(k, ids({0, 1, 2, 3}));
  move_to_another_host();
  carriers->fails = true;
  for (std::uint64_t k = 11; k <= 13; ++k) store(k, ids({0, 1, 2, 3}));
  EXPECT_EQ(stat("stores_out_of_service"), 1U);
  carriers->fails = false;
  std::uint64_t k = 0;
  EXPECT_TRUE(eventually([&] {
    std::this_thread::sleep_for(200ms);
    store(1 + k++ % 3, ids({0, 1, 2, 3}));  // what the other host has put there
    return stat("stores_out_of_service") == 0;
  }));
}

TEST_P(RemoteEngines, ALoadThatWasGivenUpDoesNotGoThere) {
  store_and_move(1, ids({0, 1, 2, 3}));
  const std::size_t before = carriers->orders;
  disk->hold(OperationKind::kEnter);
  const JobId job = engine->load({chunk(1, blocks_from(20))}, 0);
  ASSERT_TRUE(eventually([this] { return disk->held() == 2; })) << "a touch, and the read";
  engine->cancel(job);
  disk->release();
  EXPECT_TRUE(eventually([this] { return stat("slabs_in_use") == 0; }));
  EXPECT_EQ(carriers->orders, before);
}

// A remote tier that hangs has an upload, a disk that hangs has stores.
TEST_P(RemoteEngines, WithFewSlabsLoadsFindOneWhateverHangs) {
  options.host_memory = 3 * slab_bytes_of(options);
  restart();
  expected = bytes_of(ids({0, 1, 2, 3}));
  store(1, ids({0, 1, 2, 3}));
  carriers->is_held = true;
  ASSERT_TRUE(engine->store(key(2), 2 * 64, ids({4, 5, 6, 7}), 0));
  ASSERT_TRUE(eventually([this] { return stat("remote_store_bytes_in_flight") > 0; }));
  disk->hold(OperationKind::kWrite);
  for (std::uint64_t k = 3; k <= 6; ++k) {
    (void)engine->store(key(k), k * 64, ids({4, 5, 6, 7}), 0);
  }
  ASSERT_TRUE(eventually([this] { return disk->held() > 0; }));
  engine->load({chunk(1, blocks_from(20))}, 0);
  EXPECT_TRUE(eventually([this] {
    for (const Completion& done : engine->poll()) {
      if (done.kind == CompletionKind::kLoaded) return done.failed_chunks.empty();
    }
    return false;
  })) << "a load waits for what hangs";
  EXPECT_EQ(bytes_of(blocks_from(20)), expected);
  disk->release();
  carriers->is_held = false;
}

INSTANTIATE_TEST_SUITE_P(Engines, RemoteEngines, ::testing::Values(IoEngineChoice::kThreads));

// ---- Orders by themselves

class RemoteOrders : public ::testing::Test {
 protected:
  static constexpr std::size_t kBytes = 4 * kPageBytes;

  void get(std::uint64_t n, std::uint64_t group = 1) {
    tier.read({key(n), nullptr, kBytes, group,
               [this, n](const Status& status) { ended.emplace_back(n, status.kind()); }});
  }
  void put(std::uint64_t n) {
    tier.write({key(n), nullptr, kBytes, 0, [this, n](const Status& status, FileWrite::Outcome) {
                  ended.emplace_back(n, status.kind());
                }});
  }
  [[nodiscard]] std::vector<RemoteOrder> take(RemoteLane lane, std::size_t most = 1 << 30) {
    return tier.take(lane, most, std::chrono::milliseconds(1));
  }

  RemoteTier tier{"test://", 3 * kBytes, 2 * kBytes};
  std::vector<std::pair<std::uint64_t, StatusKind>> ended;
};

TEST_F(RemoteOrders, BytesUnderWayAreBounded) {
  for (std::uint64_t n = 0; n < 5; ++n) get(n);
  const std::vector<RemoteOrder> first = take(RemoteLane::kLoads);
  EXPECT_EQ(first.size(), 3U);
  EXPECT_TRUE(take(RemoteLane::kLoads).empty());
  tier.finish(first[1].ticket, RemoteResult::kDone, "");
  EXPECT_EQ(take(RemoteLane::kLoads).size(), 1U);
}

TEST_F(RemoteOrders, NoMoreAreTakenAtOnceThanAskedFor) {
  for (std::uint64_t n = 0; n < 3; ++n) get(n);
  EXPECT_EQ(take(RemoteLane::kLoads, 1).size(), 1U) << "one at least";
  EXPECT_EQ(take(RemoteLane::kLoads, kBytes).size(), 1U);
}

TEST_F(RemoteOrders, RequestsTakeTurns) {
  get(1, 1);
  get(2, 1);
  get(3, 2);
  const std::vector<RemoteOrder> orders = take(RemoteLane::kLoads);
  ASSERT_EQ(orders.size(), 3U);
  EXPECT_EQ(orders[1].key, key(3));
}

TEST_F(RemoteOrders, WhileLoadsAreQueuedOneStoreIsUnderWay) {
  put(1);
  put(2);
  get(3);
  EXPECT_EQ(take(RemoteLane::kStores).size(), 1U);
  EXPECT_TRUE(take(RemoteLane::kStores).empty());
  EXPECT_EQ(take(RemoteLane::kLoads).size(), 1U);
  EXPECT_EQ(take(RemoteLane::kStores).size(), 1U);
}

TEST_F(RemoteOrders, ARemovalIsNotBehindStores) {
  put(1);
  tier.remove(key(2), [](const Status&) {});
  const std::vector<RemoteOrder> orders = take(RemoteLane::kStores);
  ASSERT_EQ(orders.size(), 2U);
  EXPECT_EQ(orders[0].kind, RemoteOrderKind::kRemove);
}

TEST_F(RemoteOrders, EachResultIsOneStatus) {
  const std::vector<std::pair<RemoteResult, StatusKind>> all = {
      {RemoteResult::kDone, StatusKind::kOk},         {RemoteResult::kThere, StatusKind::kOk},
      {RemoteResult::kMissing, StatusKind::kMissing}, {RemoteResult::kBad, StatusKind::kBadChunk},
      {RemoteResult::kFailed, StatusKind::kIo},
  };
  for (const auto& [result, status] : all) {
    get(1);
    tier.finish(take(RemoteLane::kLoads).at(0).ticket, result, "why");
    EXPECT_EQ(ended.back().second, status);
  }
  EXPECT_THROW(tier.finish(99, RemoteResult::kDone, ""), std::invalid_argument);
}

TEST_F(RemoteOrders, WhatIsQueuedIsCancelledAndWhatIsUnderWayIsWaitedFor) {
  get(1);
  const std::vector<RemoteOrder> orders = take(RemoteLane::kLoads);
  get(2);
  put(3);
  get(4, 2);
  tier.cancel(2);
  EXPECT_EQ(ended,
            (std::vector<std::pair<std::uint64_t, StatusKind>>{{4, StatusKind::kCancelled}}));
  tier.begin_shutdown();
  EXPECT_EQ(ended.size(), 3U);
  EXPECT_FALSE(tier.wait_idle(std::chrono::milliseconds(1)));
  EXPECT_TRUE(take(RemoteLane::kLoads).empty());
  tier.finish(orders[0].ticket, RemoteResult::kDone, "");
  EXPECT_TRUE(tier.wait_idle(std::chrono::milliseconds(1)));
  get(5);
  EXPECT_EQ(ended.back(), (std::pair<std::uint64_t, StatusKind>{5, StatusKind::kCancelled}));
}

TEST_F(RemoteOrders, WhoWaitsIsWokenByAnOrderAndByTheEnd) {
  std::thread later([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    get(1);
  });
  EXPECT_EQ(tier.take(RemoteLane::kLoads, 1, std::chrono::hours(1)).size(), 1U);
  later.join();
  std::thread end([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    tier.begin_shutdown();
  });
  EXPECT_TRUE(tier.take(RemoteLane::kStores, 1, std::chrono::hours(1)).empty());
  end.join();
}

}  // namespace
}  // namespace lmkv
