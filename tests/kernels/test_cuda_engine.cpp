// The whole core, files included, over the emulated GPU.
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "engine/engine.hpp"
#include "paged_cache.hpp"
#include "support.hpp"

namespace lmkv::test {
namespace {

using namespace std::chrono_literals;

class CudaEngineTest : public ::testing::TestWithParam<TransferMode> {
 protected:
  void SetUp() override {
    emulated_gpu::reset();
    ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithPriority(&compute_, 0, 0), cudaSuccess);
  }
  void TearDown() override {
    engine_.reset();
    static_cast<void>(cudaStreamDestroy(compute_));
    EXPECT_EQ(emulated_gpu::counts().registered_bytes, 0U);
    EXPECT_EQ(emulated_gpu::counts().allocated_bytes, 0U);
    EXPECT_EQ(emulated_gpu::counts().events, 0U);
    EXPECT_EQ(emulated_gpu::counts().contexts, std::set<int>{1});
    emulated_gpu::reset();
  }

  // A fresh engine over the same directory.
  void start() {
    engine_.reset();
    EngineOptions options;
    options.roots = {root_.path()};
    options.namespace_digest = digest_of<NamespaceDigest>(1);
    const SegmentTable table = cache_.table();
    options.segments.assign(table.segments().begin(), table.segments().end());
    options.block_count = cache_.shape().blocks;
    options.block_tokens = 16;
    options.blocks_per_chunk = 4;
    options.host_memory = 4 << 20;
    options.device = "cuda:1";
    options.transfer.mode = GetParam();
    options.transfer.staging_bytes = 30000;
    engine_ = std::make_unique<Engine>(options, make_parts(options));
  }
  std::uintptr_t stream() const { return reinterpret_cast<std::uintptr_t>(compute_); }
  std::vector<Completion> finish() {
    EXPECT_TRUE(engine_->drain(20s));
    return engine_->poll();
  }

  TemporaryDirectory root_;
  PagedCache cache_{{Layout::kLbnhc, 3, 64, 4100, 0, 0}};
  cudaStream_t compute_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

TEST_P(CudaEngineTest, AFreshEngineLoadsWhatAForwardPassWroteAndAnotherStored) {
  start();
  EXPECT_EQ(engine_->info().at("device"), "cuda:1");
  EXPECT_EQ(engine_->info().at("gather"), name_of(GetParam()));
  EXPECT_EQ(engine_->info().at("pin_error"), "");
  emulated_gpu::delay_work(500);
  std::vector<std::vector<std::byte>> written;
  for (std::uint32_t i = 0; i < 8; ++i) {
    const std::vector<BlockId> blocks{BlockId{4 * i + 2}, BlockId{4 * i}, BlockId{4 * i + 3},
                                      BlockId{4 * i + 1}};
    written.push_back(random_bytes(4 * cache_.table().block_bytes(), i + 50));
    emulated_gpu::enqueue(compute_,
                          [this, blocks, bytes = written.back()] { cache_.set(blocks, bytes); });
    ASSERT_TRUE(engine_->store(digest_of<ChunkKey>(i), i * 64, blocks, stream()));
  }
  for (const Completion& completion : finish()) EXPECT_EQ(completion.error, "");
  start();
  for (std::uint32_t i = 0; i < 8; ++i) {
    const std::vector<BlockId> blocks{BlockId{32 + 4 * i}, BlockId{33 + 4 * i}, BlockId{34 + 4 * i},
                                      BlockId{35 + 4 * i}};
    engine_->load({{digest_of<ChunkKey>(i), i * 64, 4, 0, blocks}}, stream());
  }
  for (const Completion& completion : finish()) {
    EXPECT_EQ(completion.error, "");
    EXPECT_TRUE(completion.failed_chunks.empty());
  }
  for (std::uint32_t i = 0; i < 8; ++i) {
    EXPECT_TRUE(cache_.contiguous({BlockId{32 + 4 * i}, BlockId{33 + 4 * i}, BlockId{34 + 4 * i},
                                   BlockId{35 + 4 * i}}) == written[i]);
  }
}

TEST_P(CudaEngineTest, ALostGpuEndsStoresAndLoadsButNotTheEngine) {
  start();
  const std::vector<BlockId> blocks{BlockId{0}, BlockId{1}, BlockId{2}, BlockId{3}};
  const bool by_kernel = GetParam() != TransferMode::kCopyEngine;
  emulated_gpu::fail(by_kernel ? "kernel" : "copy", cudaErrorIllegalAddress);
  ASSERT_TRUE(engine_->store(digest_of<ChunkKey>(1), 0, blocks, stream()));
  const std::vector<Completion> done = finish();
  ASSERT_EQ(done.size(), 2U);
  EXPECT_NE(done[0].error.find("cudaErrorIllegalAddress"), std::string::npos) << done[0].error;
  EXPECT_FALSE(engine_->store(digest_of<ChunkKey>(2), 0, blocks, stream()));
  engine_->load({{digest_of<ChunkKey>(1), 0, 4, 0, blocks}}, stream());
  const std::vector<Completion> failed = finish();
  ASSERT_EQ(failed.size(), 1U);
  EXPECT_EQ(failed[0].failed_chunks.size(), 1U);
  EXPECT_EQ(engine_->stats().at("device_lost"), 1U);
  EXPECT_EQ(engine_->stats().at("slabs_in_use"), 0U);
  EXPECT_EQ(engine_->stats().at("chunks_stored"), 0U);
}

// Fences end with the loads that wait for them, on I/O threads: they never used a GPU, and do not.
TEST_P(CudaEngineTest, LoadsOfMissingChunksUseNoGpuFromIoThreads) {
  start();
  for (std::uint32_t i = 0; i < 20; ++i) {
    engine_->load({{digest_of<ChunkKey>(i), 0, 4, 0, {BlockId{0}, BlockId{1}}}}, stream());
  }
  for (const Completion& completion : finish()) EXPECT_EQ(completion.failed_chunks.size(), 1U);
}

TEST_P(CudaEngineTest, HostMemoryThatCannotBePinnedIsUsedAndCounted) {
  emulated_gpu::fail("cudaHostRegister", cudaErrorMemoryAllocation);
  start();
  EXPECT_EQ(engine_->stats().at("unpinned_slabs"), engine_->stats().at("slabs_total"));
  EXPECT_NE(engine_->info().at("pin_error"), "");
  const std::vector<BlockId> blocks{BlockId{0}, BlockId{1}, BlockId{2}, BlockId{3}};
  ASSERT_TRUE(engine_->store(digest_of<ChunkKey>(1), 0, blocks, stream()));
  for (const Completion& completion : finish()) EXPECT_EQ(completion.error, "");
}

INSTANTIATE_TEST_SUITE_P(All, CudaEngineTest,
                         ::testing::Values(TransferMode::kCopyEngine, TransferMode::kKernelStaged,
                                           TransferMode::kKernelMapped),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace lmkv::test
