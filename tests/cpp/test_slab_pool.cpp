#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "arena/arena_pool.hpp"
#include "chunk_tree.hpp"
#include "engine/slab_pool.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kSlabBytes = 2 * kPageBytes;

// Of one engine alone, and in an arena.
enum class Kind { kPrivate, kArena };

class SlabPoolTest : public ::testing::TestWithParam<Kind> {
 protected:
  void expect_counts(std::size_t free, std::size_t in_use, std::size_t cached) {
    const SlabCounts counts = pool.counts();
    EXPECT_EQ(counts.free, free);
    EXPECT_EQ(counts.in_use, in_use);
    EXPECT_EQ(counts.cached, cached);
    EXPECT_EQ(counts.total, free + in_use + cached);
  }
  static ChunkKey key(std::uint64_t n) { return test::digest_of<ChunkKey>(n); }

  std::vector<std::byte> kv = std::vector<std::byte>(64);
  std::unique_ptr<Device> device = make_host_device(
      SegmentTable(std::vector<Segment>{{reinterpret_cast<std::uintptr_t>(kv.data()), 64, 64}}));
  test::TemporaryDirectory folder{"/dev/shm"};
  std::unique_ptr<SlabPool> owned = make();
  SlabPool& pool = *owned;

 private:
  std::unique_ptr<SlabPool> make() {
    if (GetParam() == Kind::kPrivate) {
      return std::make_unique<PrivateSlabPool>(kSlabBytes, 3, *device);
    }
    const ArenaPlace place{folder.path(), kSlabBytes};
    auto arena = std::make_unique<ArenaPool>(place, 3 * kSlabBytes, NamespaceDigest{}, 0,
                                             ArenaPool::Reach::kLocal, *device);
    test::eventually([&] { return arena->counts().free == 3; });  // they have their pages
    return arena;
  }
};

INSTANTIATE_TEST_SUITE_P(, SlabPoolTest, ::testing::Values(Kind::kPrivate, Kind::kArena),
                         [](const auto& each) {
                           return each.param == Kind::kPrivate ? "Private" : "Arena";
                         });

TEST_P(SlabPoolTest, SlabsArePageAlignedAndApart) {
  auto first = pool.try_acquire();
  auto second = pool.try_acquire();
  ASSERT_TRUE(first && second);
  for (const auto& slab : {first->bytes(), second->bytes()}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(slab.data()) % kPageBytes, 0U);
    EXPECT_EQ(slab.size(), kSlabBytes);
  }
  EXPECT_NE(first->bytes().data(), second->bytes().data());
  expect_counts(1, 2, 0);
}

TEST_P(SlabPoolTest, ADroppedSlabIsFreeAgain) {
  {
    const auto slab = pool.try_acquire();
  }
  expect_counts(3, 0, 0);
}

TEST_P(SlabPoolTest, NothingIsLeftWhenAllAreInUse) {
  std::vector<Slab> slabs;
  for (int i = 0; i < 3; ++i) slabs.push_back(*pool.try_acquire());
  EXPECT_FALSE(pool.try_acquire());
  slabs.pop_back();
  EXPECT_TRUE(pool.try_acquire());
}

TEST_P(SlabPoolTest, APublishedChunkIsFoundWhileInUseAndAfter) {
  std::byte* data = nullptr;
  {
    const SharedSlab shared = pool.publish(*pool.try_acquire(), key(1));
    data = shared.bytes().data();
    expect_counts(2, 1, 0);
    const auto again = pool.find(key(1)).chunk;
    ASSERT_TRUE(again);
    EXPECT_EQ(again->bytes().data(), data);
    expect_counts(2, 1, 0);
  }
  expect_counts(2, 0, 1);
  const auto found = pool.find(key(1)).chunk;
  ASSERT_TRUE(found);
  EXPECT_EQ(found->bytes().data(), data);
  expect_counts(2, 1, 0);
  EXPECT_FALSE(pool.find(key(2)).chunk);
}

TEST_P(SlabPoolTest, TheLeastRecentlyUsedChunkGivesWay) {
  for (std::uint64_t i = 1; i <= 3; ++i) {
    const SharedSlab shared = pool.publish(*pool.try_acquire(), key(i));
  }
  expect_counts(0, 0, 3);
  {
    const auto used = pool.find(key(1)).chunk;
  }
  const auto slab = pool.try_acquire();
  ASSERT_TRUE(slab);
  EXPECT_TRUE(pool.find(key(1)).chunk);
  EXPECT_FALSE(pool.find(key(2)).chunk);
  EXPECT_TRUE(pool.find(key(3)).chunk);
}

TEST_P(SlabPoolTest, AChunkInUseNeverGivesWay) {
  std::vector<SharedSlab> held;
  for (std::uint64_t i = 1; i <= 3; ++i) held.push_back(pool.publish(*pool.try_acquire(), key(i)));
  EXPECT_FALSE(pool.try_acquire());
}

TEST_P(SlabPoolTest, OfTwoSlabsWithOneKeyTheFirstStaysFindable) {
  const SharedSlab first = pool.publish(*pool.try_acquire(), key(1));
  {
    const SharedSlab second = pool.publish(*pool.try_acquire(), key(1));
    EXPECT_EQ(pool.find(key(1)).chunk->bytes().data(), first.bytes().data());
  }
  expect_counts(2, 1, 0);
}

TEST_P(SlabPoolTest, ManyThreadsKeepTheInvariant) {
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (std::uint64_t i = 0; i < 2000; ++i) {
        const ChunkKey wanted = key((t + i) % 6);
        if (const auto found = pool.find(wanted).chunk) continue;
        if (auto slab = pool.try_acquire()) {
          slab->bytes()[0] = static_cast<std::byte>(t);
          if (i % 3 != 0) const SharedSlab shared = pool.publish(std::move(*slab), wanted);
        }
        const SlabCounts counts = pool.counts();
        ASSERT_EQ(counts.total, counts.free + counts.in_use + counts.cached);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.counts().in_use, 0U);
}

}  // namespace
}  // namespace lmkv
