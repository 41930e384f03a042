// The real GPU device, its streams, events and buffers, over an emulated GPU that delays its work.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "device/device.hpp"
#include "paged_cache.hpp"

namespace lmkv::test {
namespace {

using std::chrono::milliseconds;

// A device over a cache, pinned host memory, and a compute stream, as an engine has them.
class CudaDeviceTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kHostBytes = 8 << 20;

  // The second device, as a worker of rank 1 uses it: threads begin at the first.
  static constexpr int kDevice = 1;

  void SetUp() override {
    emulated_gpu::reset();
    ASSERT_EQ(cudaSetDevice(kDevice), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithPriority(&compute_, 0, 0), cudaSuccess);
  }
  void TearDown() override {
    close();
    static_cast<void>(cudaStreamDestroy(compute_));
    const emulated_gpu::Counts counts = emulated_gpu::counts();
    EXPECT_EQ(counts.streams, 0U);
    EXPECT_EQ(counts.events, 0U);
    EXPECT_EQ(counts.allocated_bytes, 0U);
    EXPECT_EQ(counts.registered_bytes, 0U);
    EXPECT_EQ(counts.contexts, std::set<int>{kDevice}) << "a context takes half a gigabyte";
    emulated_gpu::reset();
  }

  void open(const CacheShape& shape, const TransferOptions& options, bool pinned = true) {
    cache_ = std::make_unique<PagedCache>(shape);
    device_ = make_cuda_device(cache_->table(), kDevice, options);
    if (!pinned) emulated_gpu::fail("cudaHostRegister", cudaErrorMemoryAllocation);
    pin_error_ = device_->pin(host_.data(), host_.size());
    device_->start();
  }
  void close() {
    if (device_ == nullptr) return;
    device_->stop();
    if (pin_error_.empty()) device_->unpin(host_.data());
    device_.reset();
  }

  // Queues a transfer of these blocks at `offset` of the host memory, behind the compute stream.
  std::future<Status> submit(Direction direction, const std::vector<BlockId>& blocks,
                             std::size_t offset) {
    auto promise = std::make_shared<std::promise<Status>>();
    Transfer transfer;
    transfer.direction = direction;
    transfer.blocks = blocks;
    transfer.host = host_.data() + offset;
    transfer.after = device_->fence(reinterpret_cast<std::uintptr_t>(compute_));
    transfer.done = [promise](Status status) { promise->set_value(std::move(status)); };
    device_->submit(std::move(transfer));
    return promise->get_future();
  }
  std::vector<std::byte> host(std::size_t offset, std::size_t bytes) const {
    const auto begin = host_.begin() + static_cast<std::ptrdiff_t>(offset);
    return {begin, begin + static_cast<std::ptrdiff_t>(bytes)};
  }
  // A forward pass: writes blocks when its turn comes.
  void compute(const std::vector<BlockId>& blocks, std::vector<std::byte> bytes,
               milliseconds takes = milliseconds(0)) {
    emulated_gpu::enqueue(compute_, [this, blocks, bytes = std::move(bytes), takes] {
      std::this_thread::sleep_for(takes);
      cache_->set(blocks, bytes);
    });
  }

  std::unique_ptr<PagedCache> cache_;
  std::unique_ptr<Device> device_;
  std::vector<std::byte> host_ = random_bytes(kHostBytes, 7);
  std::string pin_error_;
  cudaStream_t compute_ = nullptr;
};

TransferOptions only(TransferMode mode) {
  TransferOptions options;
  options.mode = mode;
  options.thread_blocks = 3;
  options.staging_bytes = 40000;  // a few blocks: a transfer goes through all buffers, repeatedly
  return options;
}

class CudaModeTest : public CudaDeviceTest,
                     public ::testing::WithParamInterface<std::tuple<TransferMode, Layout>> {};

TEST_P(CudaModeTest, BlocksGoThereAndBack) {
  const auto [mode, layout] = GetParam();
  open({layout, 3, 300, 4100, 12, 0}, only(mode));
  EXPECT_EQ(device_->info()["gather"], name_of(mode));
  EXPECT_EQ(device_->info()["scatter"], name_of(mode));
  // More blocks than a kernel launch takes.
  const auto source = random_blocks(270, 300, 1);
  const std::vector<std::byte> expected = cache_->contiguous(source);
  ASSERT_TRUE(submit(Direction::kGather, source, 64).get().is_ok());
  EXPECT_TRUE(host(64, expected.size()) == expected);

  const auto target = random_blocks(270, 300, 2);
  PagedCache after = *cache_;
  after.set(target, expected);
  ASSERT_TRUE(submit(Direction::kScatter, target, 64).get().is_ok());
  EXPECT_TRUE(cache_->memory() == after.memory());
}

// Work begins late and at random: whatever is not ordered by an event comes out of order.
TEST_P(CudaModeTest, NothingOvertakesWhatItWaitsFor) {
  const auto [mode, layout] = GetParam();
  open({layout, 3, 64, 4096, 0, 0}, only(mode));
  emulated_gpu::delay_work(300);
  const std::size_t bytes = 8 * cache_->table().block_bytes();
  for (unsigned round = 0; round < 6; ++round) {
    std::vector<std::future<Status>> gathers;
    std::vector<std::vector<std::byte>> expected;
    // Every gather's blocks are written by the compute stream just before it is submitted.
    for (unsigned i = 0; i < 6; ++i) {
      const auto blocks = random_blocks(8, 8, i);
      expected.push_back(random_bytes(bytes, round * 100 + i));
      std::vector<BlockId> mine;
      for (const BlockId block : blocks) {
        mine.push_back(BlockId{static_cast<std::uint32_t>(block) + 8 * i});
      }
      compute(mine, expected.back());
      gathers.push_back(submit(Direction::kGather, mine, i * bytes));
      // Its blocks are free once the gather is done, and not before.
      if (i == 3) {
        ASSERT_TRUE(gathers[i].get().is_ok());
        compute(mine, random_bytes(bytes, 12345));
      }
    }
    for (unsigned i = 0; i < 6; ++i) {
      if (gathers[i].valid()) {
        ASSERT_TRUE(gathers[i].get().is_ok());
      }
      EXPECT_TRUE(host(i * bytes, bytes) == expected[i]) << "gather " << i;
    }
    // And back, to blocks that the compute stream still writes to.
    std::vector<std::future<Status>> scatters;
    for (unsigned i = 0; i < 6; ++i) {
      std::vector<BlockId> target;
      for (std::uint32_t block = 0; block < 8; ++block) target.push_back(BlockId{block + 8 * i});
      compute(target, random_bytes(bytes, 999));
      scatters.push_back(submit(Direction::kScatter, target, i * bytes));
    }
    for (auto& scatter : scatters) ASSERT_TRUE(scatter.get().is_ok());
    for (std::uint32_t i = 0; i < 6; ++i) {
      std::vector<BlockId> target;
      for (std::uint32_t block = 0; block < 8; ++block) target.push_back(BlockId{block + 8 * i});
      EXPECT_TRUE(cache_->contiguous(target) == expected[i]) << "scatter " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaModeTest,
                         ::testing::Combine(::testing::Values(TransferMode::kCopyEngine,
                                                              TransferMode::kKernelStaged,
                                                              TransferMode::kKernelMapped),
                                            ::testing::Values(Layout::kLbnhc, Layout::kBlnhc)),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) + "_" +
                                  name_of(std::get<1>(info.param));
                         });

TEST_F(CudaDeviceTest, AGatherWaitsForAForwardPassThatIsSlow) {
  open({}, only(TransferMode::kKernelMapped));
  const auto blocks = random_blocks(4, 64, 1);
  const auto written = random_bytes(4 * cache_->table().block_bytes(), 5);
  compute(blocks, written, milliseconds(50));
  std::future<Status> gather = submit(Direction::kGather, blocks, 0);
  EXPECT_EQ(gather.wait_for(milliseconds(10)), std::future_status::timeout);
  ASSERT_TRUE(gather.get().is_ok());
  EXPECT_TRUE(host(0, written.size()) == written);
}

// Why blocks are held until a gather is reported: before that their next owner's bytes are taken.
TEST_F(CudaDeviceTest, BlocksThatAreOverwrittenBeforeTheGatherIsReportedAreGatheredWrong) {
  open({}, only(TransferMode::kKernelMapped));
  const auto blocks = random_blocks(4, 64, 1);
  const auto other = random_bytes(4 * cache_->table().block_bytes(), 6);
  emulated_gpu::hold("kernel");
  std::future<Status> gather = submit(Direction::kGather, blocks, 0);
  compute(blocks, other);
  ASSERT_EQ(cudaStreamSynchronize(compute_), cudaSuccess);
  emulated_gpu::release();
  ASSERT_TRUE(gather.get().is_ok());
  EXPECT_TRUE(host(0, other.size()) == other);
}

TEST_F(CudaDeviceTest, AScatterDoesNotWaitForAGatherThatWaits) {
  open({}, only(TransferMode::kKernelStaged));
  std::promise<void> go;
  emulated_gpu::enqueue(compute_, [future = go.get_future().share()] { future.wait(); });
  std::future<Status> gather = submit(Direction::kGather, {BlockId{1}}, 0);
  Transfer scatter;
  scatter.direction = Direction::kScatter;
  scatter.blocks = {BlockId{2}};
  scatter.host = host_.data() + 65536;
  std::promise<Status> scattered;
  scatter.done = [&](Status status) { scattered.set_value(std::move(status)); };
  device_->submit(std::move(scatter));
  EXPECT_TRUE(scattered.get_future().get().is_ok());
  EXPECT_EQ(gather.wait_for(milliseconds(0)), std::future_status::timeout);
  go.set_value();
  EXPECT_TRUE(gather.get().is_ok());
}

// ---- What is chosen

TEST_F(CudaDeviceTest, LargeFragmentsGoByCopyEngineAndSmallOnesByKernel) {
  open({Layout::kBlnhc, 3, 64, 16384, 0, 0}, {});  // one fragment of 48 KiB a block
  EXPECT_EQ(device_->info()["gather"], "copy_engine");
  EXPECT_EQ(device_->info()["gather_reason"], "48 KiB fragments");
  close();
  open({Layout::kLbnhc, 3, 64, 16384, 0, 0}, {});
  EXPECT_EQ(device_->info()["scatter"], "kernel_staged");
  EXPECT_EQ(device_->info()["scatter_reason"], "16 KiB fragments");
}

TEST_F(CudaDeviceTest, ABatchOfCopiesIsOneCall) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kCopyEngine));
  ASSERT_TRUE(submit(Direction::kGather, random_blocks(4, 64, 1), 0).get().is_ok());
  EXPECT_EQ(emulated_gpu::counts().batches, 1U);
  EXPECT_EQ(emulated_gpu::counts().copies, 12U);
}

TEST_F(CudaDeviceTest, CopiesGoOneByOneWhereTheDriverHasNoBatches) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kCopyEngine));
  emulated_gpu::fail("cudaMemcpyBatchAsync", cudaErrorCallRequiresNewerDriver, 2);
  const auto blocks = random_blocks(4, 64, 1);
  const auto expected = cache_->contiguous(blocks);
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(submit(Direction::kGather, blocks, 0).get().is_ok());
    EXPECT_TRUE(host(0, expected.size()) == expected);
  }
  EXPECT_EQ(emulated_gpu::counts().batches, 0U);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaDeviceTest, WithoutMemoryForStagingKernelsReachTheHostThemselves) {
  emulated_gpu::limit_memory(65536);
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, {});
  EXPECT_EQ(device_->info()["gather"], "kernel_mapped");
  EXPECT_EQ(device_->info()["gather_reason"], "no GPU memory is left for staging buffers");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_TRUE(submit(Direction::kGather, random_blocks(4, 64, 1), 0).get().is_ok());
}

TEST_F(CudaDeviceTest, HostMemoryThatIsNotPinnedIsReachedByCopies) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kKernelMapped), false);
  EXPECT_NE(pin_error_.find("cudaErrorMemoryAllocation"), std::string::npos) << pin_error_;
  EXPECT_EQ(device_->info()["gather"], "kernel_staged");
  EXPECT_EQ(device_->info()["gather_reason"],
            "a kernel cannot reach host memory that is not pinned");
  const auto blocks = random_blocks(4, 64, 1);
  const auto expected = cache_->contiguous(blocks);
  ASSERT_TRUE(submit(Direction::kGather, blocks, 0).get().is_ok());
  EXPECT_TRUE(host(0, expected.size()) == expected);
}

TEST_F(CudaDeviceTest, WithNeitherTheCopyEnginesDoIt) {
  emulated_gpu::limit_memory(65536);
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, {}, false);
  EXPECT_EQ(device_->info()["scatter"], "copy_engine");
  EXPECT_TRUE(submit(Direction::kScatter, random_blocks(4, 64, 1), 0).get().is_ok());
}

// ---- What goes wrong

class CudaCallTest : public CudaDeviceTest,
                     public ::testing::WithParamInterface<std::tuple<TransferMode, const char*>> {};

// A call that fails fails its transfer, which is told so once; the next one is none the worse.
TEST_P(CudaCallTest, AFailedCallFailsOneTransfer) {
  const auto [mode, call] = GetParam();
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(mode));
  const auto blocks = random_blocks(20, 64, 1);
  emulated_gpu::fail(call, cudaErrorMemoryAllocation);
  const Status failed = submit(Direction::kGather, blocks, 0).get();
  EXPECT_EQ(failed.kind(), StatusKind::kDevice);
  EXPECT_NE(failed.message().find("cudaErrorMemoryAllocation"), std::string::npos)
      << failed.message();
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "torch would report it as its own";
  EXPECT_EQ(device_->failure(), "");
  const auto expected = cache_->contiguous(blocks);
  ASSERT_TRUE(submit(Direction::kGather, blocks, 0).get().is_ok());
  EXPECT_TRUE(host(0, expected.size()) == expected);
}

INSTANTIATE_TEST_SUITE_P(
    All, CudaCallTest,
    ::testing::Values(std::tuple(TransferMode::kCopyEngine, "cudaEventCreateWithFlags"),
                      std::tuple(TransferMode::kCopyEngine, "cudaEventRecord"),
                      std::tuple(TransferMode::kCopyEngine, "cudaStreamWaitEvent"),
                      std::tuple(TransferMode::kCopyEngine, "cudaMemcpyBatchAsync"),
                      std::tuple(TransferMode::kKernelStaged, "cudaLaunchKernel"),
                      std::tuple(TransferMode::kKernelStaged, "cudaMemcpyAsync"),
                      std::tuple(TransferMode::kKernelStaged, "cudaStreamWaitEvent"),
                      std::tuple(TransferMode::kKernelMapped, "cudaLaunchKernel")),
    [](const auto& info) {
      return std::string(name_of(std::get<0>(info.param))) + "_" + std::get<1>(info.param);
    });

// Until every piece of a failed transfer has ended nobody is told: the memory may be reused then.
TEST_F(CudaDeviceTest, AFailedTransferIsReportedWhenNothingOfItRunsAnyMore) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kKernelStaged));
  const unsigned before = emulated_gpu::counts().copies;
  emulated_gpu::hold("copy");
  emulated_gpu::fail("cudaMemcpyAsync", cudaErrorMemoryAllocation, 1, 2);
  const auto blocks = random_blocks(20, 64, 1);  // three at a time
  const auto expected = cache_->contiguous(blocks);
  std::future<Status> transfer = submit(Direction::kGather, blocks, 0);
  EXPECT_EQ(transfer.wait_for(milliseconds(50)), std::future_status::timeout);
  emulated_gpu::release();
  EXPECT_EQ(transfer.get().kind(), StatusKind::kDevice);
  EXPECT_EQ(emulated_gpu::counts().copies - before, 2U);
  const std::size_t copied = 6 * cache_->table().block_bytes();
  EXPECT_EQ(std::memcmp(host_.data(), expected.data(), copied), 0);
}

// As above, where the host's bytes are read: its memory is given back to the pool on failure.
TEST_F(CudaDeviceTest, AFailedScatterIsReportedWhenNothingOfItRunsAnyMore) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kKernelStaged));
  const unsigned before = emulated_gpu::counts().copies;
  emulated_gpu::hold("copy");
  emulated_gpu::fail("cudaLaunchKernel", cudaErrorMemoryAllocation);
  std::future<Status> transfer = submit(Direction::kScatter, random_blocks(20, 64, 1), 0);
  EXPECT_EQ(transfer.wait_for(milliseconds(50)), std::future_status::timeout);
  emulated_gpu::release();
  EXPECT_EQ(transfer.get().kind(), StatusKind::kDevice);
  EXPECT_EQ(emulated_gpu::counts().copies - before, 1U);
}

// The model's own kernel, while lmkv had nothing to do.
TEST_F(CudaDeviceTest, AContextThatIsLostElsewhereIsNoticed) {
  for (const TransferMode mode :
       {TransferMode::kCopyEngine, TransferMode::kKernelStaged, TransferMode::kKernelMapped}) {
    open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(mode));
    emulated_gpu::fail("model", cudaErrorIllegalAddress);
    emulated_gpu::enqueue(compute_, [] {}, "model");
    static_cast<void>(cudaStreamSynchronize(compute_));
    EXPECT_EQ(submit(Direction::kGather, {BlockId{1}}, 0).get().kind(), StatusKind::kDevice);
    EXPECT_NE(device_->failure().find("cudaErrorIllegalAddress"), std::string::npos);
    close();
    emulated_gpu::reset();
    ASSERT_EQ(cudaSetDevice(kDevice), cudaSuccess);
  }
}

TEST_F(CudaDeviceTest, AnExceptionOfALaneThreadFailsOneTransfer) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kCopyEngine));
  Transfer impossible;
  impossible.blocks.resize(1);
  impossible.host = host_.data();
  emulated_gpu::throw_from("cudaMemcpyBatchAsync");
  std::promise<Status> done;
  impossible.done = [&](Status status) { done.set_value(std::move(status)); };
  device_->submit(std::move(impossible));
  EXPECT_EQ(done.get_future().get().kind(), StatusKind::kDevice);
  EXPECT_TRUE(submit(Direction::kGather, {BlockId{1}}, 0).get().is_ok());
}

TEST_F(CudaDeviceTest, AGpuThatTheBuildHasNoKernelsForIsServedByCopies) {
  emulated_gpu::fail("cudaFuncGetAttributes", cudaErrorNoKernelImageForDevice);
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, {});
  EXPECT_EQ(device_->info()["gather"], "copy_engine");
  EXPECT_EQ(device_->info()["gather_reason"], "this build has no kernels for this GPU");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_TRUE(submit(Direction::kGather, random_blocks(4, 64, 1), 0).get().is_ok());
}

// Batches take host addresses as they are; where the GPU has others for them, they are not used.
TEST_F(CudaDeviceTest, HostMemoryUnderAnotherAddressIsNotCopiedByBatches) {
  emulated_gpu::alias_host_memory(4096);
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kCopyEngine));
  const auto blocks = random_blocks(4, 64, 1);
  const auto expected = cache_->contiguous(blocks);
  ASSERT_TRUE(submit(Direction::kGather, blocks, 0).get().is_ok());
  EXPECT_TRUE(host(0, expected.size()) == expected);
  EXPECT_EQ(emulated_gpu::counts().batches, 0U);
  close();
  emulated_gpu::alias_host_memory(0);
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kCopyEngine), false);
  ASSERT_TRUE(submit(Direction::kGather, blocks, 0).get().is_ok());
  EXPECT_EQ(emulated_gpu::counts().batches, 0U) << "nor is memory that is not pinned";
}

// A callback that takes its time (it hashes the chunk) does not keep the GPU waiting.
TEST_F(CudaDeviceTest, TransfersGoOnWhileACallbackRuns) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kKernelMapped));
  std::promise<void> go;
  std::promise<void> called;
  Transfer slow;
  slow.blocks = {BlockId{1}};
  slow.host = host_.data();
  slow.done = [&, future = go.get_future().share()](const Status&) {
    called.set_value();
    future.wait();
  };
  device_->submit(std::move(slow));
  called.get_future().wait();
  std::vector<std::future<Status>> others;
  for (std::size_t i = 1; i <= 3; ++i) {
    others.push_back(submit(Direction::kGather, {BlockId{2}}, 65536 * i));
  }
  for (int i = 0; i < 2000 && emulated_gpu::counts().kernels < 4; ++i) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(emulated_gpu::counts().kernels, 4U);
  go.set_value();
  for (auto& other : others) EXPECT_TRUE(other.get().is_ok());
}

TEST_F(CudaDeviceTest, ALostContextEndsAllTransfersAndIsNotAskedAgain) {
  open({Layout::kLbnhc, 3, 64, 4096, 0, 0}, only(TransferMode::kKernelMapped));
  emulated_gpu::fail("kernel", cudaErrorIllegalAddress);
  const Status first = submit(Direction::kGather, {BlockId{1}}, 0).get();
  EXPECT_EQ(first.kind(), StatusKind::kDevice);
  EXPECT_NE(device_->failure().find("cudaErrorIllegalAddress"), std::string::npos)
      << device_->failure();
  const unsigned calls = emulated_gpu::counts().calls_after_loss;
  for (const Direction direction : {Direction::kGather, Direction::kScatter}) {
    Transfer transfer;
    transfer.direction = direction;
    transfer.blocks = {BlockId{1}};
    transfer.host = host_.data();
    std::promise<Status> done;
    transfer.done = [&](Status status) { done.set_value(std::move(status)); };
    device_->submit(std::move(transfer));
    EXPECT_EQ(done.get_future().get().message(), device_->failure());
  }
  EXPECT_EQ(emulated_gpu::counts().calls_after_loss, calls);
}

TEST_F(CudaDeviceTest, AMissingGpuIsAnErrorAtStart) {
  const PagedCache cache({});
  EXPECT_THROW(static_cast<void>(make_cuda_device(cache.table(), 3, {})), DeviceError);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cuda_status().device_count, 2);
}

}  // namespace
}  // namespace lmkv::test
