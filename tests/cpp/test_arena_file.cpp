#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "arena/arena_file.hpp"
#include "arena/arena_lock.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kSlabBytes = 2 * kPageBytes;

class ArenaFileTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string reason(const ArenaPlace& wanted) const {
    try {
      const ArenaFile file = ArenaFile::open_or_create(wanted, 100 * kSlabBytes);
    } catch (const ArenaError& error) {
      return error.what();
    }
    return "";
  }
  // Overwrites `bytes` of the arena's file.
  void write_at(std::size_t offset, const std::string& bytes) const {
    std::fstream file(place.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file << bytes;
  }

  test::TemporaryDirectory folder{"/dev/shm"};
  ArenaPlace place{folder.path(), kSlabBytes};
};

TEST_F(ArenaFileTest, WhatOneMakesAnotherOpens) {
  const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  const ArenaFile found = ArenaFile::open_or_create(place, 7 * kSlabBytes);
  EXPECT_TRUE(made.is_new());
  EXPECT_FALSE(found.is_new());
  EXPECT_EQ(found.header().slot_count, 100U);
  ASSERT_EQ(made.give_pages(3), 0);
  made.slab(3)[17] = std::byte{42};
  EXPECT_EQ(found.slab(3)[17], std::byte{42});
  EXPECT_NE(found.slab(3).data(), made.slab(3).data());
}

TEST_F(ArenaFileTest, ThereIsNoneUnlessSomebodyMakesIt) {
  EXPECT_FALSE(ArenaFile::open_existing(place));
}

TEST_F(ArenaFileTest, NobodyElseMayUseIt) {
  const mode_t before = ::umask(0);
  const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  ::umask(before);
  struct stat found{};
  ASSERT_EQ(::stat(place.path().c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600U);
}

TEST_F(ArenaFileTest, AGroupMayWhereItIsSaidTo) {
  place.access = Access::kGroup;
  const mode_t before = ::umask(077);
  const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  ::umask(before);
  struct stat found{};
  ASSERT_EQ(::stat(place.path().c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0660U);
}

TEST_F(ArenaFileTest, OneThatOthersMayUseIsRefused) {
  {
    const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  }
  ASSERT_EQ(::chmod(place.path().c_str(), 0666), 0);
  EXPECT_NE(reason(place).find("others may use it"), std::string::npos);
}

TEST_F(ArenaFileTest, SomebodyElsesIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to give a file away";
  {
    const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  }
  ASSERT_EQ(::chown(place.path().c_str(), 12345, 12345), 0);
  EXPECT_NE(reason(place).find("somebody else's"), std::string::npos);
}

TEST_F(ArenaFileTest, ALinkIsNotFollowed) {
  const std::string elsewhere = folder / "elsewhere";
  {
    const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  }
  ASSERT_EQ(::rename(place.path().c_str(), elsewhere.c_str()), 0);
  ASSERT_EQ(::symlink(elsewhere.c_str(), place.path().c_str()), 0);
  EXPECT_NE(reason(place), "");
}

TEST_F(ArenaFileTest, AnotherLayoutIsRefusedAndLeftAsItIs) {
  {
    const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  }
  const std::uint32_t next = kArenaLayout + 1;
  write_at(offsetof(ArenaHeader, layout), std::string(reinterpret_cast<const char*>(&next), 4));
  EXPECT_NE(reason(place).find("another version"), std::string::npos);
  EXPECT_NE(reason(place).find("another version"), std::string::npos);
}

// Whatever a header says that does not fit the file: it is never read by it.
TEST_F(ArenaFileTest, AHeaderThatDoesNotFitIsRefused) {
  {
    const ArenaFile made = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  }
  std::ifstream file(place.path(), std::ios::binary);
  std::string header(sizeof(ArenaHeader), '\0');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  for (std::size_t at = 0; at < header.size(); ++at) {
    for (const int flip : {0x01, 0x80}) {
      std::string changed = header;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      write_at(0, changed);
      EXPECT_NE(reason(place), "") << "byte " << at;
    }
  }
  write_at(0, header);
  EXPECT_EQ(reason(place), "");
}

TEST_F(ArenaFileTest, AFileThatWasCutIsRefused) {
  {
    const ArenaFile made = ArenaFile::open_or_create(place, 2000 * kSlabBytes);
  }
  for (const std::uint64_t bytes : {0UL, 4096UL, 3UL << 20}) {
    std::filesystem::resize_file(place.path(), bytes);
    EXPECT_NE(reason(place), "") << bytes;
  }
}

TEST_F(ArenaFileTest, ADirectoryOnADiskIsRefused) {
  const test::TemporaryDirectory disk;
  place.directory = disk.path();
  EXPECT_NE(reason(place).find("neither tmpfs nor hugetlbfs"), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_empty(disk.path()));
}

TEST_F(ArenaFileTest, ADirectoryThatIsNotThereIsRefused) {
  place.directory = folder / "missing";
  EXPECT_NE(reason(place).find("No such file"), std::string::npos);
}

TEST_F(ArenaFileTest, OneThatWasTakenAwayIsMadeAnew) {
  const ArenaFile old = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  old.slots().control().retired = 1;
  std::filesystem::remove(place.path());
  EXPECT_TRUE(ArenaFile::open_or_create(place, 100 * kSlabBytes).is_new());
}

TEST_F(ArenaFileTest, MemoryIsTakenSlotBySlot) {
  const ArenaFile arena = ArenaFile::open_or_create(place, 2000 * kSlabBytes);
  const auto used = [&] {
    struct stat found{};
    EXPECT_EQ(::fstat(arena.fd(), &found), 0);
    return static_cast<std::size_t>(found.st_blocks) * 512;
  };
  const std::size_t before = used();
  EXPECT_LT(before, 4U << 20);
  for (std::uint32_t slot = 0; slot < 1000; ++slot) ASSERT_EQ(arena.give_pages(slot), 0);
  EXPECT_GE(used(), before + 1000 * kSlabBytes);
}

// Whoever looked at the same time as others leaves as much as one who was alone.
TEST_F(ArenaFileTest, HoweverManyTakeMemoryAtOnceSomeIsLeftForOthers) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  const test::TemporaryDirectory small{"/dev/shm"};
  if (::mount("none", small.path().c_str(), "tmpfs", 0, "size=8m") != 0) {
    GTEST_SKIP() << "mounts are not allowed here";
  }
  constexpr std::uint32_t kThreads = 16;
  {
    const ArenaPlace tight{small.path(), std::size_t{1} << 20};
    const ArenaFile arena = ArenaFile::open_or_create(tight, 64 << 20);
    std::latch all(kThreads);
    std::atomic<int> given{0};
    std::vector<std::thread> threads;
    for (std::uint32_t slot = 0; slot < kThreads; ++slot) {
      threads.emplace_back([&, slot] {
        all.arrive_and_wait();
        const int failed = arena.give_pages(slot);
        EXPECT_TRUE(failed == 0 || failed == ENOSPC) << failed;
        given += failed == 0;
      });
    }
    for (std::thread& thread : threads) thread.join();
    struct statfs left{};
    ASSERT_EQ(::statfs(small.path().c_str(), &left), 0);
    EXPECT_GE(left.f_bavail, left.f_blocks / 16);
    // Of those that met some could be given theirs after all.
    EXPECT_LT(given, 8);
    std::uint32_t slot = kThreads;
    while (arena.give_pages(slot) == 0) ++slot;
    ASSERT_EQ(::statfs(small.path().c_str(), &left), 0);
    EXPECT_GE(left.f_bavail, left.f_blocks / 16);
    EXPECT_GE(given + slot - kThreads, 5U);
  }
  EXPECT_EQ(::umount(small.path().c_str()), 0);
}

// ---- The lock

class ArenaLockTest : public ArenaFileTest {
 protected:
  // A process that has the lock, in the middle of a change, until it is killed.
  [[nodiscard]] pid_t holder() const {
    int ready[2] = {};
    EXPECT_EQ(::pipe(ready), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      const ArenaFile own = ArenaFile::open_or_create(place, 100 * kSlabBytes);
      const auto lock = ArenaLock::take(own);
      own.slots().control().cached.first = 17;
      const char is_held = lock ? 1 : 0;
      if (::write(ready[1], &is_held, 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char is_held = 0;
    EXPECT_EQ(::read(ready[0], &is_held, 1), 1);
    EXPECT_EQ(is_held, 1);
    ::close(ready[0]);
    ::close(ready[1]);
    return child;
  }
  static void kill(pid_t child) {
    ::kill(child, SIGKILL);
    EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  }
  static bool can_take(const ArenaFile& file) { return ArenaLock::take(file).has_value(); }

  ArenaFile arena = ArenaFile::open_or_create(place, 100 * kSlabBytes);
  ArenaFile other = ArenaFile::open_or_create(place, 100 * kSlabBytes);
};

TEST_F(ArenaLockTest, OneThatAnotherHoldsIsNotWaitedForLong) {
  const auto held = ArenaLock::take(other);
  ASSERT_TRUE(held);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(can_take(arena));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
}

// A prompt asks for hundreds of chunks: together they do not wait much longer than one.
TEST_F(ArenaLockTest, WhoeverHasWaitedInVainDoesNotWaitAgainForAWhile) {
  ImpatientLock lock;
  {
    const auto held = ArenaLock::take(other);
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 500; ++i) EXPECT_FALSE(lock.take(arena));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(250));
  }
  EXPECT_TRUE(lock.take(arena));
}

TEST_F(ArenaLockTest, ItIsFreeAgainAfterItsHolder) {
  EXPECT_TRUE(can_take(other));
  EXPECT_TRUE(can_take(arena));
  EXPECT_EQ(arena.slots().control().repairs, 0U);
}

TEST_F(ArenaLockTest, FromADeadHolderItIsTakenAndTheArenaRepaired) {
  kill(holder());
  EXPECT_TRUE(can_take(arena));
  EXPECT_EQ(arena.slots().control().repairs, 1U);
  EXPECT_STREQ(arena.slots().fault(), "");
  EXPECT_TRUE(can_take(other));
  EXPECT_EQ(arena.slots().control().repairs, 1U);
}

TEST_F(ArenaLockTest, FromAHolderThatIsStoppedItIsNot) {
  const pid_t child = holder();
  ASSERT_EQ(::kill(child, SIGSTOP), 0);
  EXPECT_FALSE(can_take(arena));
  EXPECT_EQ(arena.slots().control().repairs, 0U);
  kill(child);
  EXPECT_TRUE(can_take(arena));
}

// The kernel gives its byte to whoever comes next: that one is alive, and not the holder.
TEST_F(ArenaLockTest, FromOneThatHadTheSeatBeforeItIsTaken) {
  const std::uint64_t before = arena.seat().ticket ^ (std::uint64_t{1} << 40);
  arena.slots().control().lock = before;
  EXPECT_FALSE(can_take(other));  // it cannot know
  EXPECT_TRUE(can_take(arena));
  EXPECT_EQ(arena.slots().control().repairs, 1U);
  EXPECT_TRUE(can_take(other));
}

TEST_F(ArenaLockTest, SeatsAreEachOnesOwn) {
  EXPECT_NE(arena.seat().byte, other.seat().byte);
  EXPECT_TRUE(is_locked_elsewhere(other.fd(), arena.seat().byte));
  const std::uint16_t byte = arena.seat().byte;
  {
    const ArenaFile gone = std::move(arena);
  }
  EXPECT_FALSE(is_locked_elsewhere(other.fd(), byte));
}

TEST_F(ArenaLockTest, OnlyOneHasItAtATime) {
  constexpr int kTurns = 20'000;
  // Added to in two steps: what one adds in between would be lost. Atomic for ThreadSanitizer, to
  // which the two mappings' locks are two.
  std::atomic<std::uint64_t> inside{0};
  const auto work = [&](const ArenaFile& file) {
    for (int i = 0; i < kTurns;) {
      if (const auto lock = ArenaLock::take(file)) {
        inside.store(inside.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        ++i;
      }
    }
  };
  std::thread first([&] { work(arena); });
  work(other);
  first.join();
  EXPECT_EQ(inside, 2U * kTurns);
}

}  // namespace
}  // namespace lmkv
