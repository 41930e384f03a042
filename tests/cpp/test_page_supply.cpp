#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/page_supply.hpp"
#include "engine/slab_pool.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kMiB = 1 << 20;

// Fresh memory, as a slab pool maps it.
class Mapping {
 public:
  explicit Mapping(std::size_t bytes)
      : bytes_(bytes),
        begin_(
            static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(begin_, bytes_); }

  [[nodiscard]] std::byte* begin() const { return begin_; }
  [[nodiscard]] SlabMemory memory() const { return {begin_, bytes_, bytes_}; }

 private:
  std::size_t bytes_;
  std::byte* begin_;
};

// How many of these bytes have pages.
std::size_t resident(const SlabMemory& memory) {
  std::vector<unsigned char> pages(memory.bytes / kPageBytes);
  EXPECT_EQ(::mincore(memory.begin, memory.bytes, pages.data()), 0);
  return kPageBytes * static_cast<std::size_t>(std::ranges::count(pages, 1));
}

bool becomes_resident(const SlabMemory& memory, std::size_t bytes) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (resident(memory) < bytes) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

class PageSupplyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const Mapping page(kPageBytes);
    constexpr int kPopulateWrite = 23;
    if (::madvise(page.begin(), kPageBytes, kPopulateWrite) != 0) {
      GTEST_SKIP() << "this kernel has no MADV_POPULATE_WRITE";
    }
  }

  std::vector<std::byte> kv = std::vector<std::byte>(64);
  std::unique_ptr<Device> device = make_host_device(
      SegmentTable(std::vector<Segment>{{reinterpret_cast<std::uintptr_t>(kv.data()), 64, 64}}));
};

TEST_F(PageSupplyTest, PagesComeAsFarAsTheyAreAskedForAndLeaveWhatIsThere) {
  const Mapping mapping(64 * kMiB);
  for (std::size_t at = 0; at < 64 * kMiB; at += 2 * kPageBytes) mapping.begin()[at] = std::byte{7};
  EXPECT_LT(resident(mapping.memory()), 40 * kMiB);
  PageSupply supply(mapping.begin(), 64 * kMiB);
  supply.reach(16 * kMiB);
  supply.reach(8 * kMiB);
  EXPECT_TRUE(becomes_resident({mapping.begin(), 16 * kMiB, kPageBytes}, 16 * kMiB));
  EXPECT_LT(resident(mapping.memory()), 50 * kMiB);
  supply.reach(100 * kMiB);
  EXPECT_TRUE(becomes_resident(mapping.memory(), 64 * kMiB));
  for (std::size_t at = 0; at < 64 * kMiB; at += kPageBytes) {
    const bool written = at % (2 * kPageBytes) == 0;
    ASSERT_EQ(mapping.begin()[at], written ? std::byte{7} : std::byte{0});
  }
}

TEST_F(PageSupplyTest, ItEndsInTheMiddleOfItsWork) {
  const Mapping mapping(512 * kMiB);
  for (int i = 0; i < 20; ++i) {
    PageSupply supply(mapping.begin(), 512 * kMiB);
    supply.reach(512 * kMiB);
  }
  EXPECT_LT(resident(mapping.memory()), 512 * kMiB);
}

TEST_F(PageSupplyTest, ASlabPoolHasPagesAheadOfItsUseAndNotMuchMore) {
  constexpr std::size_t kMiB = 1 << 20;
  constexpr std::size_t kAhead = 256 * kMiB;
  PrivateSlabPool large(32 * kMiB, 12, *device);
  EXPECT_TRUE(becomes_resident(large.memory(), kAhead));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(resident(large.memory()), kAhead);
  {
    const auto slab = large.try_acquire();
    EXPECT_TRUE(becomes_resident(large.memory(), kAhead + 32 * kMiB));
  }
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(large.try_acquire());  // the same one again
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(resident(large.memory()), kAhead + 32 * kMiB);
  std::vector<Slab> slabs;
  for (int i = 0; i < 12; ++i) slabs.push_back(*large.try_acquire());
  EXPECT_TRUE(becomes_resident(large.memory(), 12 * 32 * kMiB));
}

}  // namespace
}  // namespace lmkv
