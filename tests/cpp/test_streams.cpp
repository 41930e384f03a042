// The pipelines against an engine whose forward passes run later, on a stream of their own.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "delayed_device.hpp"
#include "device/host_stream.hpp"
#include "engine/engine.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::digest_of;

constexpr std::size_t kPage = 3000;
constexpr std::size_t kBlocks = 64;
constexpr std::uint32_t kBlocksPerChunk = 4;
constexpr std::size_t kChunk = kBlocksPerChunk * kPage;

std::vector<BlockId> four_from(std::uint32_t first) {
  return {BlockId{first}, BlockId{first + 1}, BlockId{first + 2}, BlockId{first + 3}};
}

std::vector<std::byte> random_chunk(std::uint64_t seed) {
  std::vector<std::byte> bytes(kChunk);
  test::fill_random(bytes, seed);
  return bytes;
}

class StreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    test::fill_random(kv_, 1);
    options_.roots = {root_.path()};
    options_.namespace_digest = digest_of<NamespaceDigest>(1);
    options_.segments = {{reinterpret_cast<std::uintptr_t>(kv_.data()), kPage, kPage}};
    options_.block_count = kBlocks;
    options_.block_tokens = 16;
    options_.blocks_per_chunk = kBlocksPerChunk;
    options_.host_memory = 1 << 20;
    start();
  }
  void TearDown() override { engine_.reset(); }

  // A fresh engine: nothing is in memory.
  void start() {
    engine_.reset();
    EngineParts parts = make_parts(options_);
    auto delayed = std::make_unique<test::DelayedDevice>(SegmentTable(options_.segments));
    device_ = delayed.get();
    parts.device = std::move(delayed);
    engine_ = std::make_unique<Engine>(options_, std::move(parts));
  }

  // The engine's own work on four blocks, in the order of its stream.
  void compute(std::uint32_t first, std::vector<std::byte> bytes,
               std::chrono::milliseconds takes = 0ms) {
    compute_.enqueue([this, first, bytes = std::move(bytes), takes] {
      std::this_thread::sleep_for(takes);
      std::ranges::copy(bytes, kv_.begin() + first * kPage);
    });
  }
  std::vector<std::byte> blocks(std::uint32_t first) const {
    const auto begin = kv_.begin() + first * kPage;
    return {begin, begin + kChunk};
  }
  bool store(std::uint64_t k, std::uint32_t first) {
    return engine_->store(digest_of<ChunkKey>(k), k * 64, four_from(first), compute_.handle())
        .has_value();
  }
  void load(std::uint64_t k, std::uint32_t first) {
    engine_->load({{digest_of<ChunkKey>(k), k * 64, kBlocksPerChunk, 0, four_from(first)}},
                  compute_.handle());
  }
  void wait_for_gathers(std::size_t count) {
    while (count > 0) {
      for (const Completion& completion : engine_->poll()) {
        if (completion.kind == CompletionKind::kGathered) --count;
      }
      std::this_thread::yield();
    }
  }
  void finish() {
    ASSERT_TRUE(engine_->drain(20s));
    for (const Completion& completion : engine_->poll()) EXPECT_EQ(completion.error, "");
  }
  // What the file holds, through a fresh engine.
  std::vector<std::byte> stored(std::uint64_t k) {
    start();
    load(k, kBlocks - kBlocksPerChunk);
    finish();
    return blocks(kBlocks - kBlocksPerChunk);
  }

  test::TemporaryDirectory root_;
  std::vector<std::byte> kv_ = std::vector<std::byte>(kBlocks * kPage);
  EngineOptions options_;
  test::DelayedDevice* device_ = nullptr;
  HostStream compute_;  // outlives the engine
  std::unique_ptr<Engine> engine_;
};

TEST_F(StreamTest, BlocksOverwrittenRightAfterGatheredIsReportedAreStoredAsTheyWere) {
  const auto written = random_chunk(10);
  compute(8, written, 30ms);
  ASSERT_TRUE(store(1, 8));
  wait_for_gathers(1);
  std::ranges::fill(kv_, std::byte{0xEE});
  finish();
  EXPECT_TRUE(stored(1) == written);
}

// That the test above can fail: before it is reported the gather may still be to come.
TEST_F(StreamTest, BlocksOverwrittenBeforeThatAreStoredWrong) {
  compute(8, random_chunk(10));
  device_->hold();
  ASSERT_TRUE(store(1, 8));
  const auto other = random_chunk(11);
  compute(8, other);
  compute_.synchronize();
  device_->release();
  finish();
  EXPECT_TRUE(stored(1) == other);
}

TEST_F(StreamTest, ALoadDoesNotOverwriteWhatAForwardPassStillReads) {
  const auto expected = blocks(8);
  ASSERT_TRUE(store(1, 8));
  finish();
  const auto before = blocks(20);
  std::vector<std::byte> read_late;
  compute_.enqueue([&] {
    std::this_thread::sleep_for(30ms);
    read_late = blocks(20);
  });
  load(1, 20);
  finish();
  EXPECT_TRUE(read_late == before);
  EXPECT_TRUE(blocks(20) == expected);
}

TEST_F(StreamTest, ALoadDoesNotWaitForAStoreWhoseForwardPassIsStillToRun) {
  ASSERT_TRUE(store(1, 8));
  finish();
  std::atomic<bool> go{false};
  HostStream other;
  other.enqueue([&] {
    while (!go) std::this_thread::yield();
  });
  ASSERT_TRUE(engine_->store(digest_of<ChunkKey>(2), 128, four_from(0), other.handle()));
  load(1, 20);
  std::vector<Completion> done;
  while (done.empty()) done = engine_->poll();
  EXPECT_EQ(done[0].kind, CompletionKind::kLoaded);
  go = true;
  finish();
}

TEST_F(StreamTest, AnyMixOfForwardPassesStoresAndLoadsKeepsItsOrder) {
  std::mt19937 random(3);
  for (std::uint64_t round = 0; round < 40; ++round) {
    std::vector<std::vector<std::byte>> written;
    for (std::uint32_t i = 0; i < 8; ++i) {
      written.push_back(random_chunk(round * 100 + i));
      compute(4 * i, written.back(), std::chrono::milliseconds(random() % 2));
      ASSERT_TRUE(store(round * 8 + i, 4 * i));
    }
    wait_for_gathers(8);
    std::fill_n(kv_.begin(), 32 * kPage, std::byte{0});
    finish();
    for (std::uint32_t i = 0; i < 8; ++i) {
      compute(32 + 4 * (i % 4), random_chunk(77));
      load(round * 8 + i, 32 + 4 * (i % 4));
      finish();
      ASSERT_TRUE(blocks(32 + 4 * (i % 4)) == written[i]) << round << " " << i;
    }
  }
}

TEST_F(StreamTest, OnALostDeviceStoresAreDroppedAndLoadsFailWithItsReason) {
  ASSERT_TRUE(store(1, 8));
  finish();
  device_->lose("the GPU's context is lost: because");
  EXPECT_FALSE(store(2, 12));
  EXPECT_FALSE(store(1, 8));  // nor from memory
  load(1, 20);
  ASSERT_TRUE(engine_->drain(20s));
  const std::vector<Completion> done = engine_->poll();
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].failed_chunks, std::vector<std::size_t>{0});
  EXPECT_EQ(done[0].error, "the GPU's context is lost: because");
  const auto stats = engine_->stats();
  EXPECT_EQ(stats.at("stores_dropped"), 2U);
  EXPECT_EQ(stats.at("loads_failed"), 1U);
  EXPECT_EQ(stats.at("device_lost"), 1U);
  EXPECT_EQ(stats.at("slabs_in_use"), 0U);
  EXPECT_EQ(engine_->info().at("device_failure"), "the GPU's context is lost: because");
}

}  // namespace
}  // namespace lmkv
