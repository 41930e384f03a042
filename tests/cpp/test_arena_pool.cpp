// Several engines' pools in one arena.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "arena/arena_lock.hpp"
#include "arena/arena_pool.hpp"
#include "arena/arena_view.hpp"
#include "chunk_tree.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kSlabBytes = 2 * kPageBytes;
constexpr std::size_t kSlots = 4;

ChunkKey key(std::uint64_t n) { return test::digest_of<ChunkKey>(n); }

class ArenaPoolTest : public ::testing::Test {
 protected:
  // Another engine. Each has its own open file, mapping and place.
  [[nodiscard]] std::unique_ptr<ArenaPool> join(std::uint32_t rank = 0,
                                                std::uint64_t name_space = 1) {
    return std::make_unique<ArenaPool>(place, kSlots * kSlabBytes,
                                       test::digest_of<NamespaceDigest>(name_space), rank, reach,
                                       *device);
  }
  // What a process does before it is killed, without a chance to say goodbye.
  void in_a_process_that_dies(const std::function<void()>& work) {
    const pid_t child = ::fork();
    if (child == 0) {
      work();
      ::kill(::getpid(), SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
  }
  [[nodiscard]] ArenaReport report() const { return *report_arena(place, true); }
  // Every slot has its pages.
  void wait_for_pages() const {
    ASSERT_TRUE(
        test::eventually([&] { return report().slots.bare == 0 && report().slots.filling == 0; }));
  }
  static void store(SlabPool& pool, std::uint64_t n) {
    std::optional<Slab> slab;
    ASSERT_TRUE(test::eventually([&] { return (slab = pool.try_acquire()).has_value(); }));
    test::fill_random(slab->bytes(), n);
    const SharedSlab shared = pool.publish(std::move(*slab), key(n));
  }
  static void expect_chunk(SlabPool& pool, std::uint64_t n) {
    const SlabPool::Found found = pool.find(key(n));
    ASSERT_TRUE(found.chunk);
    std::vector<std::byte> wanted(kSlabBytes);
    test::fill_random(wanted, n);
    EXPECT_EQ(std::memcmp(found.chunk->bytes().data(), wanted.data(), kSlabBytes), 0);
  }

  std::vector<std::byte> kv = std::vector<std::byte>(64);
  std::unique_ptr<Device> device = make_host_device(
      SegmentTable(std::vector<Segment>{{reinterpret_cast<std::uintptr_t>(kv.data()), 64, 64}}));
  test::TemporaryDirectory folder{"/dev/shm"};
  const ArenaPlace place{folder.path(), kSlabBytes};
  ArenaPool::Reach reach = ArenaPool::Reach::kLocal;
};

TEST_F(ArenaPoolTest, WhatOneEngineStoredAnotherHas) {
  const auto first = join();
  const auto second = join();
  store(*first, 7);
  expect_chunk(*second, 7);
  EXPECT_FALSE(second->find(key(8)).chunk);
}

TEST_F(ArenaPoolTest, OtherRanksAndNamespacesDoNot) {
  const auto first = join();
  store(*first, 7);
  EXPECT_FALSE(join(1)->find(key(7)).chunk);
  EXPECT_FALSE(join(0, 2)->find(key(7)).chunk);
}

TEST_F(ArenaPoolTest, ItOutlivesTheEngines) {
  store(*join(), 7);
  expect_chunk(*join(), 7);
}

TEST_F(ArenaPoolTest, WhatOneReadsNoOtherTakes) {
  const auto first = join();
  const auto second = join();
  wait_for_pages();
  for (std::uint64_t n = 0; n < kSlots; ++n) store(*first, n);
  const auto held = second->find(key(0)).chunk;
  for (std::uint64_t n = 10; n < 10 + 3 * kSlots; ++n) store(*first, n);
  expect_chunk(*first, 0);
  EXPECT_FALSE(first->find(key(1)).chunk);
}

TEST_F(ArenaPoolTest, ASlotThatOneHoldsTwiceIsHeldUntilBothAreGone) {
  const auto first = join();
  const auto second = join();
  wait_for_pages();
  store(*first, 7);
  auto once = first->find(key(7)).chunk;
  auto twice = first->find(key(7)).chunk;
  once.reset();
  for (std::uint64_t n = 10; n < 10 + 3 * kSlots; ++n) store(*second, n);
  expect_chunk(*second, 7);
  twice.reset();
  for (std::uint64_t n = 10; n < 10 + 3 * kSlots; ++n) store(*second, n);
  EXPECT_FALSE(second->find(key(7)).chunk);
}

TEST_F(ArenaPoolTest, WhatAnotherReadsIsSaidToArrive) {
  const auto first = join();
  const auto second = join();
  auto slab = first->try_acquire(key(7));
  ASSERT_TRUE(slab);
  EXPECT_TRUE(second->find(key(7)).is_arriving);
  EXPECT_FALSE(second->find(key(8)).is_arriving);
  slab.reset();
  EXPECT_FALSE(second->find(key(7)).is_arriving);
}

TEST_F(ArenaPoolTest, WhatADeadEngineReadIsFreeAgain) {
  {
    const auto made = join();
  }  // the child makes no threads but those of its own pool
  in_a_process_that_dies([&] {
    auto pool = join();
    store(*pool, 7);
    auto held = pool->find(key(7)).chunk;
    ::kill(::getpid(), SIGKILL);
  });
  const auto pool = join();
  EXPECT_EQ(report().slots.held, 0U);
  expect_chunk(*pool, 7);
}

TEST_F(ArenaPoolTest, WhatADeadEngineFilledIsKeptFromAllForAWhile) {
  {
    const auto made = join();
  }
  in_a_process_that_dies([&] {
    auto pool = join();
    auto slab = pool->try_acquire(key(7));
    ::kill(::getpid(), SIGKILL);
  });
  const auto pool = join();                // in the dead one's place
  EXPECT_GE(report().slots.orphaned, 1U);  // and what it brought memory for
  EXPECT_FALSE(pool->find(key(7)).is_arriving);
  EXPECT_STREQ(report().fault.c_str(), "");
}

// A burst does not push out what is of use while there is memory for more.
TEST_F(ArenaPoolTest, NothingIsEvictedWhileThereIsMemoryToBeHad) {
  constexpr std::size_t kSlots = 200;
  // For the last two it may just be made, of which nobody waits for the end: it may take long.
  constexpr std::size_t kMany = kSlots - 2;
  ArenaPool pool(place, kSlots * kSlabBytes, NamespaceDigest{}, 0, reach, *device);
  ASSERT_EQ(pool.counts().total, kSlots);
  for (std::uint64_t n = 0; n < kMany; ++n) {
    std::optional<Slab> slab;
    ASSERT_TRUE(test::eventually([&] { return (slab = pool.try_acquire()).has_value(); }));
    const SharedSlab shared = pool.publish(std::move(*slab), key(n));
  }
  // Its lock may be another thread's for longer than one waits.
  for (std::uint64_t n = 0; n < kMany; ++n) {
    ASSERT_TRUE(test::eventually([&] { return pool.find(key(n)).chunk.has_value(); })) << n;
  }
}

TEST_F(ArenaPoolTest, ADeadEngineIsNoticedByAnotherThatLives) {
  // Forked before there are threads: what the child makes is its own.
  int ready[2] = {};
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    auto pool = join();
    auto slab = pool->try_acquire(key(7));
    const char one = 1;
    if (::write(ready[1], &one, 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char one = 0;
  ASSERT_EQ(::read(ready[0], &one, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  const auto pool = join();
  EXPECT_EQ(report().members.size(), 2U);
  EXPECT_TRUE(pool->find(key(7)).is_arriving);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(test::eventually([&] { return report().slots.orphaned >= 1; }));
  EXPECT_EQ(report().members.size(), 1U);
}

TEST_F(ArenaPoolTest, WhileTheLockIsHeldNothingIsThereAndNothingIsLost) {
  const auto pool = join();
  store(*pool, 7);
  auto held = pool->find(key(7)).chunk;
  auto slab = pool->try_acquire();
  const ArenaFile other = *ArenaFile::open_existing(place);
  {
    const auto lock = ArenaLock::take(other);
    std::thread([&] {
      EXPECT_FALSE(pool->find(key(7)).chunk);
      EXPECT_FALSE(pool->try_acquire());
      slab.reset();
      held.reset();
    }).join();
  }
  EXPECT_EQ(pool->counts().in_use, 0U);
  expect_chunk(*pool, 7);
  EXPECT_TRUE(test::eventually([&] { return report().slots.filling == 0; }));
}

// ---- From outside

TEST_F(ArenaPoolTest, AViewFindsWhatAllRanksHave) {
  const auto first = join(0);
  const auto second = join(1);
  ArenaView view(place, test::digest_of<NamespaceDigest>(1), 2);
  wait_for_pages();
  store(*first, 1);
  store(*second, 1);
  store(*first, 2);
  EXPECT_EQ(view.leading({key(1), key(2)}), 1U);
  EXPECT_EQ(view.leading({key(2), key(1)}), 0U);
  EXPECT_EQ(view.present({key(3), key(1), key(2)}), (std::vector<bool>{false, true, false}));
}

TEST_F(ArenaPoolTest, WhatNobodyUsesCanBeTakenAwayWithItsMemory) {
  {
    const auto pool = join();
    wait_for_pages();
    for (std::uint64_t n = 0; n < kSlots; ++n) store(*pool, n);
  }
  EXPECT_EQ(remove_arena(place), kSlots * kSlabBytes);
  EXPECT_FALSE(report_arena(place));
}

// Pages that io_uring or a GPU's driver has registered would be others than the file's.
TEST_F(ArenaPoolTest, WhatAnEngineUsesIsNotTakenAway) {
  const auto pool = join();
  store(*pool, 1);
  EXPECT_THROW(static_cast<void>(remove_arena(place)), ArenaError);
  expect_chunk(*pool, 1);
  expect_chunk(*join(), 1);
}

TEST_F(ArenaPoolTest, AnEngineThatComesAfterItWasTakenAwayMakesAnother) {
  store(*join(), 1);
  static_cast<void>(remove_arena(place));
  const auto pool = join();
  EXPECT_FALSE(pool->find(key(1)).chunk);
  store(*pool, 1);
  expect_chunk(*join(), 1);
}

TEST_F(ArenaPoolTest, NoMoreEnginesThanThereArePlaces) {
  std::vector<std::unique_ptr<ArenaPool>> all;
  for (std::size_t i = 0; i < kArenaMembers; ++i) all.push_back(join());
  EXPECT_THROW(static_cast<void>(join()), ArenaError);
  all.pop_back();
  EXPECT_NO_THROW(static_cast<void>(join()));
}

TEST_F(ArenaPoolTest, ADirectoryThatIsFullIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  const test::TemporaryDirectory small{"/dev/shm"};
  if (::mount("none", small.path().c_str(), "tmpfs", 0, "size=4m") != 0) {
    GTEST_SKIP() << "mounts are not allowed here";
  }
  const ArenaPlace full{small.path(), std::size_t{3} << 20};
  EXPECT_THROW(ArenaPool(full, 64 << 20, NamespaceDigest{}, 0, reach, *device), ArenaError);
  EXPECT_EQ(::umount(small.path().c_str()), 0);
}

// What is touched has memory: with none left the arena stays as large as it is.
TEST_F(ArenaPoolTest, ADirectoryThatFillsUpIsUsedAsFarAsItGoes) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  const test::TemporaryDirectory small{"/dev/shm"};
  if (::mount("none", small.path().c_str(), "tmpfs", 0, "size=8m") != 0) {
    GTEST_SKIP() << "mounts are not allowed here";
  }
  {
    const ArenaPlace tight{small.path(), std::size_t{1} << 20};
    ArenaPool pool(tight, 64 << 20, NamespaceDigest{}, 0, reach, *device);
    for (std::uint64_t n = 0; n < 200; ++n) {
      std::optional<Slab> slab;
      ASSERT_TRUE(test::eventually([&] { return (slab = pool.try_acquire()).has_value(); }));
      std::memset(slab->bytes().data(), 1, slab->bytes().size());
      const SharedSlab shared = pool.publish(std::move(*slab), key(n));
    }
    EXPECT_TRUE(test::eventually([&] { return pool.find(key(199)).chunk.has_value(); }));
    // For others, whose files there have no memory yet: without any they would die of SIGBUS.
    struct statfs left{};
    ASSERT_EQ(::statfs(small.path().c_str(), &left), 0);
    EXPECT_GE(left.f_bavail, left.f_blocks / 16);
  }
  EXPECT_EQ(::umount(small.path().c_str()), 0);
}

}  // namespace
}  // namespace lmkv
