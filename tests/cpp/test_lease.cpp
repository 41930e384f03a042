#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include <atomic>
#include <thread>

#include "chunk_tree.hpp"
#include "store/lease.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using Answer = EvictorLease::Answer;

class LeaseTest : public ::testing::Test {
 protected:
  LeaseTest() { make_tree(tree.paths()); }

  std::size_t files() { return test::count_files(tree.root()); }
  static std::string text(const std::string& path) {
    const auto bytes = test::bytes_of_file(path);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  test::ChunkTree tree;
};

TEST_F(LeaseTest, OneHoldsItAndTheNextGetsItWhenItIsGivenBack) {
  EvictorLease first(tree.paths(), 1h);
  EvictorLease second(tree.paths(), 1h);
  EXPECT_EQ(first.try_acquire(), Answer::kHeld);
  EXPECT_EQ(second.try_acquire(), Answer::kBusy);
  EXPECT_NE(text(first.path()).find(" " + std::to_string(::getpid()) + " "), std::string::npos);
  struct stat status{};
  ASSERT_EQ(::stat(first.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  first.release();
  EXPECT_EQ(second.try_acquire(), Answer::kHeld);
  EXPECT_EQ(first.try_acquire(), Answer::kBusy);
  second.release();
  EXPECT_EQ(files(), 0U);
}

TEST_F(LeaseTest, OfAGroupItIsTheGroups) {
  const mode_t before = ::umask(0077);
  EvictorLease lease(tree.paths(), 1h, Access::kGroup);
  EXPECT_EQ(lease.try_acquire(), Answer::kHeld);
  ::umask(before);
  struct stat status{};
  ASSERT_EQ(::stat(lease.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0660U);
}

TEST_F(LeaseTest, ADeadHoldersLeaseIsTakenAfterTheExpiryThatTheWaiterItselfHasSeen) {
  // Left behind by kill -9 long ago; what its clock said then does not matter.
  test::write_file(tree.root() + "/v1/evictor.lease", {});
  test::ChunkTree::set_used(tree.root() + "/v1/evictor.lease", 1000h);
  EvictorLease lease(tree.paths(), 100ms);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(lease.try_acquire(), Answer::kBusy);
  ASSERT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kHeld; }));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 100ms);
  lease.release();
  EXPECT_EQ(files(), 0U);
}

TEST_F(LeaseTest, ADeadHoldersLeaseIsTakenThoughSomebodyHasRemovedEmptyDirectories) {
  test::write_file(tree.root() + "/v1/evictor.lease", {});
  std::filesystem::remove_all(std::filesystem::path(tree.paths().rank_directory()).parent_path());
  EvictorLease lease(tree.paths(), 20ms);
  EXPECT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kHeld; }));
  lease.release();
  EXPECT_EQ(files(), 0U);
}

TEST_F(LeaseTest, ALivingHolderKeepsItWhateverItsClockSays) {
  EvictorLease holder(tree.paths(), 200ms);
  EvictorLease waiter(tree.paths(), 200ms);
  ASSERT_EQ(holder.try_acquire(), Answer::kHeld);
  const auto end = std::chrono::steady_clock::now() + 1s;
  while (std::chrono::steady_clock::now() < end) {
    ASSERT_TRUE(holder.renew());
    test::ChunkTree::set_used(holder.path(), 1000h);  // a server whose clock stands still
    ASSERT_EQ(waiter.try_acquire(), Answer::kBusy);
    std::this_thread::sleep_for(5ms);
  }
}

TEST_F(LeaseTest, AHolderThatWasStuckNoticesThatAnotherHasTakenIt) {
  EvictorLease stuck(tree.paths(), 50ms);
  EvictorLease other(tree.paths(), 50ms);
  ASSERT_EQ(stuck.try_acquire(), Answer::kHeld);
  ASSERT_TRUE(test::eventually([&] { return other.try_acquire() == Answer::kHeld; }));
  EXPECT_FALSE(stuck.renew());
  stuck.release();
  EXPECT_TRUE(other.renew());
  EXPECT_TRUE(std::filesystem::exists(other.path()));
}

TEST_F(LeaseTest, OfManyThatFindADeadHolderOneGetsIt) {
  for (int round = 0; round < 4; ++round) {
    test::write_file(tree.root() + "/v1/evictor.lease", {});
    std::atomic<int> holders{0};
    std::atomic<int> most{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        EvictorLease lease(tree.paths(), 500ms);
        ASSERT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kHeld; }));
        const int now = ++holders;
        if (now > most) most = now;
        std::this_thread::sleep_for(1ms);
        --holders;
        lease.release();
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(most, 1);
    EXPECT_EQ(files(), 0U);
  }
}

TEST_F(LeaseTest, OneThatDiedWhileTakingItOverIsNotWaitedForForEver) {
  test::write_file(tree.root() + "/v1/evictor.lease", {});
  test::write_file(tree.root() + "/v1/evictor.lease.taken", {});
  EvictorLease lease(tree.paths(), 50ms);
  ASSERT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kHeld; }));
  lease.release();
  EXPECT_EQ(files(), 0U);
}

TEST_F(LeaseTest, WhateverAPowerLossLeavesOfItKeepsNobodyWaitingForEver) {
  const std::string whole = "host 77 0123456789abcdef 5\n";
  const std::string leftovers[] = {"", whole.substr(0, 9), std::string(whole.size(), '\0'), whole};
  for (const std::string& lease_text : leftovers) {
    for (std::size_t taker = 0; taker <= std::size(leftovers); ++taker) {
      test::write_file(tree.root() + "/v1/evictor.lease", std::as_bytes(std::span(lease_text)));
      if (taker < std::size(leftovers)) {
        test::write_file(tree.root() + "/v1/evictor.lease.taken",
                         std::as_bytes(std::span(leftovers[taker])));
      }
      EvictorLease lease(tree.paths(), 10ms);
      EXPECT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kHeld; }));
      EXPECT_TRUE(lease.renew());
      lease.release();
      EXPECT_EQ(files(), 0U);
    }
  }
}

TEST_F(LeaseTest, ALinkInItsPlaceIsNotFollowed) {
  const test::TemporaryDirectory elsewhere;
  test::write_file(elsewhere / "precious", std::vector<std::byte>(10));
  std::filesystem::create_symlink(elsewhere / "precious", tree.root() + "/v1/evictor.lease");
  EvictorLease lease(tree.paths(), 500ms);
  ASSERT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kHeld; }));
  EXPECT_EQ(test::bytes_of_file(elsewhere / "precious").size(), 10U);
}

TEST_F(LeaseTest, WhateverElseLiesInItsPlaceIsNotOpenedAndGivesWay) {
  const std::string path = tree.root() + "/v1/evictor.lease";
  for (const std::string& place : {path, path + ".taken"}) {
    for (const mode_t kind : {S_IFIFO, S_IFSOCK, S_IFDIR, S_IFCHR}) {
      if (place != path) test::write_file(path, {});
      if (kind == S_IFDIR) {
        std::filesystem::create_directory(place);
      } else if (::mknod(place.c_str(), kind | 0600, 0) != 0) {
        continue;  // a device, and we are not root
      }
      const UniqueFd opens(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
      ASSERT_GE(::inotify_add_watch(opens.get(), place.c_str(), IN_OPEN), 0);
      EvictorLease lease(tree.paths(), 20ms);
      EXPECT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kHeld; })) << kind;
      inotify_event event{};
      ASSERT_GE(::read(opens.get(), &event, sizeof event), 0) << "that it is gone is told";
      EXPECT_EQ(event.mask & IN_OPEN, 0U) << kind;
      lease.release();
      EXPECT_EQ(files(), 0U);
      EXPECT_FALSE(std::filesystem::exists(place));
    }
  }
}

TEST_F(LeaseTest, ADirectoryWithSomethingInItIsNotMovedAndItSaysSo) {
  const std::string path = tree.root() + "/v1/evictor.lease";
  std::filesystem::create_directories(path + "/users own");
  EvictorLease lease(tree.paths(), 20ms);
  ASSERT_TRUE(test::eventually([&] { return lease.try_acquire() == Answer::kFailed; }));
  EXPECT_EQ(errno, ENOTEMPTY);
  EXPECT_TRUE(std::filesystem::is_directory(path + "/users own"));
}

TEST_F(LeaseTest, BehindALinkNothingIsWrittenMovedOrRemoved) {
  const test::TemporaryDirectory elsewhere;
  namespace fs = std::filesystem;
  const std::string tmp = tree.paths().temporary_directory();
  fs::remove(tmp);
  fs::create_directory_symlink(elsewhere.path(), tmp);
  test::write_file(tree.root() + "/v1/evictor.lease", {});
  EvictorLease by_tmp(tree.paths(), 0s);
  EXPECT_EQ(by_tmp.try_acquire(), Answer::kBusy);  // there is no place to put it aside
  EXPECT_TRUE(fs::is_empty(elsewhere.path()));

  fs::remove(tree.root() + "/v1/evictor.lease");
  EvictorLease holder(tree.paths(), 0s);
  ASSERT_EQ(holder.try_acquire(), Answer::kHeld);
  fs::rename(tree.root() + "/v1", elsewhere / "v1");
  fs::create_directory_symlink(elsewhere / "v1", tree.root() + "/v1");
  EXPECT_FALSE(holder.renew());
  holder.release();
  EXPECT_TRUE(fs::exists(elsewhere / "v1/evictor.lease"));
  fs::remove(elsewhere / "v1/evictor.lease");
  EXPECT_EQ(holder.try_acquire(), Answer::kFailed);
  EXPECT_EQ(errno, ELOOP);
  EXPECT_FALSE(fs::exists(elsewhere / "v1/evictor.lease"));
}

TEST_F(LeaseTest, WithoutATreeItFailsAndSaysWhy) {
  std::filesystem::remove_all(tree.root() + "/v1");
  EvictorLease lease(tree.paths(), 1h);
  EXPECT_EQ(lease.try_acquire(), Answer::kFailed);
  EXPECT_EQ(errno, ENOENT);
}

TEST_F(LeaseTest, KnowsTheFilesystemsTime) {
  EvictorLease lease(tree.paths(), 1h);
  ASSERT_EQ(lease.try_acquire(), Answer::kHeld);
  const std::string file = tree.put_file(tree.root() + "/v1/now", 1);
  EXPECT_NEAR(static_cast<double>(lease.filesystem_now_ns()),
              static_cast<double>(test::modified_ns(file)), 1e9);
}

}  // namespace
}  // namespace lmkv
