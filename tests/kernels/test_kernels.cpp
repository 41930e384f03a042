// The kernels' own source, every thread of every block, against a byte-wise reference.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "device/block_kernel.cuh"
#include "paged_cache.hpp"

namespace lmkv::test {
namespace {

constexpr std::size_t kMargin = 64;  // of poison around what a gather writes

// A launch over `blocks`, run to its end. `contiguous` has room for them.
void run(const PagedCache& cache, Direction direction, const std::vector<BlockId>& blocks,
         std::byte* contiguous, unsigned thread_blocks = 3) {
  const SegmentTable table = cache.table();
  const CudaStream stream(0);
  const BlockKernel kernel(table, thread_blocks, stream.get());
  ASSERT_EQ(kernel.launch(direction, blocks, table.block_bytes(),
                          reinterpret_cast<std::uintptr_t>(contiguous), stream.get()),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
}

// Gathers into poison of one value, then of another: a byte that was not written, or written
// outside, is found whatever it should have been.
void expect_gather(PagedCache& cache, const std::vector<BlockId>& blocks, std::size_t misalignment,
                   unsigned thread_blocks = 3) {
  const std::vector<std::byte> expected = cache.contiguous(blocks);
  const std::vector<std::byte> before = cache.memory();
  for (const int poison : {0x00, 0xFF}) {
    std::vector<std::byte> target(expected.size() + 2 * kMargin + 32, std::byte(poison));
    const std::size_t begin =
        kMargin + (16 - reinterpret_cast<std::uintptr_t>(target.data()) % 16) % 16 + misalignment;
    run(cache, Direction::kGather, blocks, target.data() + begin, thread_blocks);
    std::vector<std::byte> whole(target.size(), std::byte(poison));
    std::copy(expected.begin(), expected.end(), whole.begin() + static_cast<std::ptrdiff_t>(begin));
    ASSERT_TRUE(target == whole);
  }
  ASSERT_TRUE(cache.memory() == before);
}

void expect_scatter(PagedCache& cache, const std::vector<BlockId>& blocks,
                    std::size_t misalignment) {
  const std::size_t bytes = blocks.size() * cache.table().block_bytes();
  std::vector<std::byte> source = random_bytes(bytes + 32, 99);
  const std::size_t begin =
      (16 - reinterpret_cast<std::uintptr_t>(source.data()) % 16) % 16 + misalignment;
  const std::vector<std::byte> before = source;
  PagedCache expected = cache;
  const auto first = source.begin() + static_cast<std::ptrdiff_t>(begin);
  expected.set(blocks, {first, first + static_cast<std::ptrdiff_t>(bytes)});
  // Its memory lies elsewhere than the original's: the same bytes at the same offsets are meant.
  run(cache, Direction::kScatter, blocks, source.data() + begin);
  ASSERT_TRUE(cache.memory() == expected.memory());
  ASSERT_TRUE(source == before);
}

class KernelLayoutTest : public ::testing::TestWithParam<std::tuple<Layout, std::size_t>> {};

TEST_P(KernelLayoutTest, GathersAndScattersRandomBlocks) {
  const auto [layout, padding] = GetParam();
  for (const std::size_t count : {1, 2, 7, 100, 1000}) {
    SCOPED_TRACE(count);
    PagedCache cache({layout, 3, count + 13, 752, padding, 0});
    const auto blocks = random_blocks(count, count + 13, static_cast<unsigned>(count));
    expect_gather(cache, blocks, 0);
    expect_scatter(cache, blocks, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelLayoutTest,
                         ::testing::Combine(::testing::Values(Layout::kLbnhc, Layout::kLbhnc,
                                                              Layout::kBlnhc, Layout::kBlhnc),
                                            ::testing::Values<std::size_t>(0, 16, 20)),
                         [](const auto& info) {
                           return name_of(std::get<0>(info.param)) + "_padded_" +
                                  std::to_string(std::get<1>(info.param));
                         });

// 1 B to 1 MiB, around multiples of 16: of vectors, of a warp's round, of a tile, of several.
std::vector<std::size_t> sizes() {
  std::vector<std::size_t> all;
  for (std::size_t size = 1; size <= 66; ++size) all.push_back(size);
  for (std::size_t middle : {512, 2048, 4096, 6144, 8192, 65536, 1 << 20}) {
    for (const std::size_t size : {middle - 17, middle - 16, middle - 15, middle - 1, middle,
                                   middle + 1, middle + 15, middle + 16, middle + 17}) {
      all.push_back(size);
    }
  }
  return all;
}

TEST(KernelSizeTest, EverySizeIsCopiedWhole) {
  for (const std::size_t size : sizes()) {
    SCOPED_TRACE(size);
    PagedCache cache({Layout::kLbnhc, 2, 5, size, 0, 0});
    const std::vector<BlockId> blocks{BlockId{3}, BlockId{0}};
    expect_gather(cache, blocks, 0);
    expect_scatter(cache, blocks, 0);
  }
}

TEST(KernelSizeTest, AnyAddressMeetsAnyOther) {
  for (const std::size_t size : {5, 15, 16, 33, 531, 4103}) {
    for (std::size_t paged = 0; paged < 16; ++paged) {
      for (std::size_t contiguous = 0; contiguous < 16; ++contiguous) {
        SCOPED_TRACE(std::to_string(size) + " bytes, " + std::to_string(paged) + " and " +
                     std::to_string(contiguous) + " off");
        PagedCache cache({Layout::kBlnhc, 1, 3, size, 24, paged});
        const std::vector<BlockId> blocks{BlockId{2}, BlockId{1}};
        expect_gather(cache, blocks, contiguous);
        expect_scatter(cache, blocks, contiguous);
      }
    }
  }
}

// The number of thread blocks changes who copies what, and nothing else.
TEST(KernelGridTest, AnyNumberOfThreadBlocksDoesTheSame) {
  PagedCache cache({Layout::kLbnhc, 4, 40, 9000, 0, 0});
  for (const unsigned thread_blocks : {1U, 2U, 5U, 64U}) {
    expect_gather(cache, random_blocks(33, 40, 5), 0, thread_blocks);
  }
}

// Segments of many sizes in one table, none a multiple of the tile.
TEST(KernelGridTest, SegmentsMayDiffer) {
  std::vector<std::byte> memory = random_bytes(1 << 20, 3);
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data());
  const std::vector<Segment> segments{{base, 20000, 1},
                                      {base + 300000, 20000, 4097},
                                      {base + 16, 20000, 18432},
                                      {base + 600000, 40000, 8192},
                                      {base + 900001, 5000, 31}};
  const SegmentTable table(segments);
  const std::vector<BlockId> blocks{BlockId{9}, BlockId{0}, BlockId{4}};
  std::vector<std::byte> expected;
  for (const BlockId block : blocks) {
    for (const Segment& segment : segments) {
      const std::size_t at =
          segment.base - base + static_cast<std::size_t>(block) * segment.block_stride;
      expected.insert(expected.end(), memory.begin() + static_cast<std::ptrdiff_t>(at),
                      memory.begin() + static_cast<std::ptrdiff_t>(at + segment.bytes));
    }
  }
  const CudaStream stream(0);
  const BlockKernel kernel(table, 2, stream.get());
  std::vector<std::byte> target(expected.size());
  ASSERT_EQ(kernel.launch(Direction::kGather, blocks, table.block_bytes(),
                          reinterpret_cast<std::uintptr_t>(target.data()), stream.get()),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  EXPECT_TRUE(target == expected);
}

// KV pools of more than 4 GiB, and of more than 2^31 elements: only what is touched takes memory.
TEST(KernelAddressTest, BlocksBeyondFourGigabytesAreReached) {
  constexpr std::size_t kPool = std::size_t{64} << 30;
  void* const pool = ::mmap(nullptr, kPool, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(pool, MAP_FAILED);
  constexpr std::size_t kPage = 4096 + 512;
  constexpr std::size_t kStride = std::size_t{1} << 20;
  // Two layers of 32 GiB each: block 30000's page is 29 GiB behind its layer's first.
  const auto base = reinterpret_cast<std::uintptr_t>(pool);
  const SegmentTable table(
      std::vector<Segment>{{base, kStride, kPage}, {base + kPool / 2, kStride, kPage}});
  const std::vector<BlockId> blocks{BlockId{30000}, BlockId{1}, BlockId{8191}, BlockId{4096}};
  std::vector<std::byte> source = random_bytes(blocks.size() * table.block_bytes(), 4);
  const CudaStream stream(0);
  const BlockKernel kernel(table, 2, stream.get());
  ASSERT_EQ(kernel.launch(Direction::kScatter, blocks, table.block_bytes(),
                          reinterpret_cast<std::uintptr_t>(source.data()), stream.get()),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  const auto* from = source.data();
  for (const BlockId block : blocks) {
    for (const Segment& segment : table.segments()) {
      const auto* page = reinterpret_cast<const std::byte*>(
          segment.base + static_cast<std::size_t>(block) * segment.block_stride);
      EXPECT_EQ(std::memcmp(page, from, segment.bytes), 0);
      from += segment.bytes;
    }
  }
  std::vector<std::byte> target(source.size());
  ASSERT_EQ(kernel.launch(Direction::kGather, blocks, table.block_bytes(),
                          reinterpret_cast<std::uintptr_t>(target.data()), stream.get()),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  EXPECT_TRUE(target == source);
  ::munmap(pool, kPool);
}

}  // namespace
}  // namespace lmkv::test
