#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/load_job.hpp"
#include "engine/remote_tier.hpp"

namespace lmkv {
namespace {

using Source = LoadJob::Source;
using Chunks = std::vector<std::size_t>;

class LoadJobTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kChunks = 4;

  LoadJobTest() {
    for (std::size_t i = 0; i < kChunks; ++i) job.add(100 + i, i == 0 ? nullptr : &disk);
    job.begin(JobId{7}, job.begun + std::chrono::hours(1));
  }

  RemoteTier disk{"disk", 1, 1};
  RemoteTier remote{"remote", 1, 1};
  LoadJob job{nullptr, UseTime{}};
};

TEST_F(LoadJobTest, WhatBecameOfEachIsSaidOnceInOrder) {
  EXPECT_EQ(job.bytes(), 406U);
  EXPECT_TRUE(job.end(3, Status::ok(), Source::kMemory));
  EXPECT_TRUE(job.end(2, Status::missing("here"), Source::kDisk));
  EXPECT_TRUE(job.end(0, Status::ok(), Source::kRemote));
  EXPECT_FALSE(job.settled(3));
  EXPECT_TRUE(job.end(1, Status::timed_out("late"), Source::kDisk));
  EXPECT_TRUE(job.settled(1));
  const Completion all = job.completion();
  EXPECT_EQ(all.kind, CompletionKind::kLoaded);
  EXPECT_EQ(all.job, JobId{7});
  EXPECT_EQ(all.failed_chunks, (Chunks{1, 2}));
  EXPECT_EQ(all.memory_chunks, Chunks{3});
  EXPECT_EQ(all.remote_chunks, Chunks{0});
  EXPECT_EQ(all.cancelled_chunks, Chunks{});
  EXPECT_EQ(all.error, Status::missing("here").message());
  EXPECT_GE(all.seconds, 0);
}

TEST_F(LoadJobTest, WhatTheDeviceHasIsNotGivenUp) {
  ASSERT_TRUE(job.ask(1, remote));
  ASSERT_TRUE(job.scatter(2));
  const LoadJob::GivenUp given_up = job.give_up(Status::cancelled());
  EXPECT_EQ(given_up.chunks, 3U);
  EXPECT_EQ(given_up.bytes, 100U + 101U + 103U);
  EXPECT_EQ(given_up.tiers, (std::set<Tier*>{&disk, &remote}));
  EXPECT_FALSE(job.settled(given_up.chunks));
  // What still comes of the others is nobody's.
  EXPECT_FALSE(job.ask(0, disk));
  EXPECT_FALSE(job.scatter(1));
  EXPECT_FALSE(job.end(3, Status::ok(), Source::kDisk));
  EXPECT_TRUE(job.end(2, Status::ok(), Source::kDisk));
  EXPECT_TRUE(job.settled(1));
  const Completion all = job.completion();
  EXPECT_EQ(all.failed_chunks, (Chunks{0, 1, 3}));
  EXPECT_EQ(all.cancelled_chunks, (Chunks{0, 1, 3}));
  EXPECT_EQ(job.give_up(Status::cancelled()).chunks, 0U);
}

TEST_F(LoadJobTest, WhatIsLateIsNotCancelled) {
  static_cast<void>(job.give_up(Status::timed_out("late")));
  EXPECT_EQ(job.completion().cancelled_chunks, Chunks{});
}

TEST(LoadJobRace, WhoeverIsLastFindsAllCounted) {
  for (int round = 0; round < 300; ++round) {
    constexpr std::size_t kEach = 8;
    LoadJob job(nullptr, UseTime{});
    for (std::size_t i = 0; i < 2 * kEach; ++i) job.add(1, nullptr);
    job.begin(JobId{1}, {});
    std::atomic<std::size_t> counted{0};
    std::atomic<int> finished{0};
    const auto settle = [&](std::size_t chunks) {
      counted.fetch_add(chunks, std::memory_order_relaxed);
      if (!job.settled(chunks)) return;
      ++finished;
      EXPECT_EQ(counted.load(std::memory_order_relaxed), 2 * kEach);
    };
    const auto end_half = [&](std::size_t first) {
      for (std::size_t i = first; i < 2 * kEach; i += 2) {
        if (job.end(i, Status::ok(), Source::kDisk)) settle(1);
      }
    };
    std::thread even([&] { end_half(0); });
    std::thread odd([&] { end_half(1); });
    if (const auto given_up = job.give_up(Status::cancelled()); given_up.chunks > 0) {
      settle(given_up.chunks);
    }
    even.join();
    odd.join();
    EXPECT_EQ(finished, 1);
  }
}

}  // namespace
}  // namespace lmkv
