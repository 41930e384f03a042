// An engine over a paged cache of the test's own, on a device and a disk that may be made to fail.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "delayed_device.hpp"
#include "engine/engine.hpp"
#include "fault_engine.hpp"
#include "holding_engine.hpp"
#include "paged_kv.hpp"
#include "support.hpp"

namespace lmkv::test {

inline ChunkKey key(std::uint64_t n) { return digest_of<ChunkKey>(n); }

inline std::vector<BlockId> ids(std::initializer_list<std::uint32_t> list) {
  std::vector<BlockId> blocks;
  for (const std::uint32_t id : list) blocks.push_back(BlockId{id});
  return blocks;
}

class EngineTest : public ::testing::TestWithParam<IoEngineChoice>, protected PagedKv {
 protected:
  void start(FaultEngine::Fault fault = {}) {
    engine.reset();
    EngineParts parts = make_parts(options);
    auto delayed = std::make_unique<DelayedDevice>(SegmentTable(options.segments));
    device = delayed.get();
    parts.device = std::move(delayed);
    std::unique_ptr<IoEngine>& io_engine = parts.roots[0].io_engine;
    if (fault) io_engine = std::make_unique<FaultEngine>(std::move(io_engine), std::move(fault));
    auto holding = std::make_unique<HoldingEngine>(std::move(io_engine));
    disk = holding.get();
    io_engine = std::move(holding);
    engine = std::make_unique<Engine>(options, std::move(parts));
  }

  // Polls until something has ended, as vLLM does; empty after 20 s.
  std::vector<Completion> poll_until_done() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < end) {
      std::vector<Completion> done = engine->poll();
      if (!done.empty()) return done;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return {};
  }
  [[nodiscard]] std::uint64_t stat(const std::string& name) const {
    return engine->stats().at(name);
  }
  // True once it holds; false when it has not after 20 s, or so many.
  static bool eventually(const std::function<bool()>& holds) {
    return eventually_within(std::chrono::seconds(20), holds);
  }
  static bool eventually_within(std::chrono::seconds seconds, const std::function<bool()>& holds) {
    const auto end = std::chrono::steady_clock::now() + seconds;
    while (!holds()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  std::vector<Completion> finish() {
    EXPECT_TRUE(engine->drain(std::chrono::seconds(20)));
    return engine->poll();
  }
  void store(std::uint64_t k, std::vector<BlockId> blocks) {
    ASSERT_TRUE(engine->store(key(k), k * 64, std::move(blocks), 0));
    const std::vector<Completion> done = finish();
    ASSERT_EQ(done.size(), 2U);
    EXPECT_EQ(done[0].kind, CompletionKind::kGathered);
    EXPECT_EQ(done[1].kind, CompletionKind::kStored);
    EXPECT_EQ(done[1].error, "");
  }
  // Refused until there is room: when it is asked for, or when it is about to be written, because
  // what others write to this disk may look like ours until the next scan.
  bool stored_in_the_end(std::uint64_t k) {
    return eventually([&] {
      if (!engine->store(key(k), k * 64, ids({1, 2, 3, 4}), 0)) return false;
      const std::vector<Completion> done = finish();
      return done.size() == 2 && done[1].error.empty();
    });
  }
  LoadChunk chunk(std::uint64_t k, std::vector<BlockId> blocks, std::uint32_t first = 0,
                  std::uint32_t count = kBlocksPerChunk) {
    return {key(k), k * 64, count, first, std::move(blocks)};
  }
  Completion load(std::vector<LoadChunk> chunks) {
    engine->load(std::move(chunks), 0);
    std::vector<Completion> done = finish();
    EXPECT_EQ(done.size(), 1U);
    EXPECT_EQ(done.at(0).kind, CompletionKind::kLoaded);
    return done.at(0);
  }
  std::string path_of(std::uint64_t k) {
    return ChunkPaths(root.path(), options.namespace_digest, 0).chunk(key(k));
  }
  void expect_all_slabs_back() {
    const auto stats = engine->stats();
    EXPECT_EQ(stats.at("slabs_in_use"), 0U);
    EXPECT_EQ(stats.at("slabs_free") + stats.at("slabs_cached"), stats.at("slabs_total"));
    EXPECT_EQ(stats.at("load_bytes_in_flight"), 0U);
    EXPECT_EQ(stats.at("store_bytes_in_flight"), 0U);
  }

  TemporaryDirectory root;
  EngineOptions options = options_of(root.path(), GetParam());
  DelayedDevice* device = nullptr;
  HoldingEngine* disk = nullptr;  // of the first root
  std::unique_ptr<Engine> engine;
};

}  // namespace lmkv::test
