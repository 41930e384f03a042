#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

#include "engine/load_queues.hpp"
#include "engine/remote_tier.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kSlabs = 4;
constexpr std::size_t kMostReading = 2;

class LoadQueuesTest : public ::testing::Test {
 protected:
  std::shared_ptr<LoadJob> make_job(std::uint64_t number, std::size_t chunks) {
    auto job = std::make_shared<LoadJob>(nullptr, UseTime{});
    for (std::size_t i = 0; i < chunks; ++i) job->add(1, &disk);
    job->begin(JobId{number}, {});
    return job;
  }
  bool push(Tier& tier, const std::shared_ptr<LoadJob>& job, std::size_t index) {
    auto load = std::make_shared<ChunkLoad>();
    load->job = job;
    load->index = index;
    load->identity.key = test::digest_of<ChunkKey>(100 * job->number() + index);
    load->tier = &tier;
    return queues.push(tier, load);
  }
  // What is taken keeps its slab, and whose it is.
  std::optional<std::pair<Tier*, std::uint64_t>> pop() {
    std::optional<LoadQueues::Next> next = queues.pop(pool);
    if (!next) return std::nullopt;
    taken.push_back(std::move(*next));
    return std::pair{taken.back().load->tier, taken.back().load->job->number()};
  }

  RemoteTier disk{"disk", 1, 1};
  RemoteTier remote{"remote", 1, 1};
  std::vector<std::byte> kv = std::vector<std::byte>(64);
  std::unique_ptr<Device> device = make_host_device(
      SegmentTable(std::vector<Segment>{{reinterpret_cast<std::uintptr_t>(kv.data()), 64, 64}}));
  PrivateSlabPool pool{kPageBytes, kSlabs, *device};
  std::vector<LoadQueues::Next> taken;
  LoadQueues queues{{&disk, &remote}, kMostReading};
};

TEST_F(LoadQueuesTest, TiersTakeTurnsAndJobsWithinThem) {
  const auto first = make_job(1, 2);
  const auto second = make_job(2, 1);
  const auto third = make_job(3, 1);
  for (const std::size_t i : {0U, 1U}) ASSERT_TRUE(push(disk, first, i));
  ASSERT_TRUE(push(disk, second, 0));
  ASSERT_TRUE(push(remote, third, 0));
  EXPECT_EQ(pop(), std::pair(static_cast<Tier*>(&disk), 1UL));
  EXPECT_EQ(pop(), std::pair(static_cast<Tier*>(&remote), 3UL));
  EXPECT_EQ(pop(), std::pair(static_cast<Tier*>(&disk), 2UL));
}

TEST_F(LoadQueuesTest, OneThatHangsHasNotAllTheSlabs) {
  const auto slow = make_job(1, 3);
  for (const std::size_t i : {0U, 1U, 2U}) ASSERT_TRUE(push(remote, slow, i));
  for (std::size_t i = 0; i < kMostReading; ++i) EXPECT_TRUE(pop());
  EXPECT_FALSE(queues.is_waiting());
  EXPECT_FALSE(pop());
  ASSERT_TRUE(push(disk, make_job(2, 1), 0));
  EXPECT_TRUE(queues.is_waiting());
  EXPECT_EQ(pop(), std::pair(static_cast<Tier*>(&disk), 2UL));
  queues.ended(remote);
  EXPECT_EQ(pop(), std::pair(static_cast<Tier*>(&remote), 1UL));
}

TEST_F(LoadQueuesTest, WithoutASlabItGoesOnWaiting) {
  std::vector<Slab> others;
  while (std::optional<Slab> slab = pool.try_acquire()) others.push_back(std::move(*slab));
  ASSERT_EQ(others.size(), kSlabs);
  ASSERT_TRUE(push(disk, make_job(1, 1), 0));
  EXPECT_FALSE(pop());
  EXPECT_TRUE(queues.is_waiting());
  others.pop_back();
  EXPECT_TRUE(pop());
  EXPECT_FALSE(queues.is_waiting());
}

TEST_F(LoadQueuesTest, WhatWasGivenUpDoesNotWait) {
  const auto job = make_job(1, 2);
  const auto other = make_job(2, 1);
  ASSERT_TRUE(push(disk, job, 0));
  ASSERT_TRUE(push(disk, other, 0));
  const LoadJob::GivenUp given_up = job->give_up(Status::cancelled());
  EXPECT_FALSE(push(remote, job, 1));
  EXPECT_EQ(queues.remove(*job, given_up.tiers).size(), 1U);
  EXPECT_EQ(pop(), std::pair(static_cast<Tier*>(&disk), 2UL));
  EXPECT_FALSE(pop());
}

TEST_F(LoadQueuesTest, OneTiersAreCleared) {
  const auto job = make_job(1, 2);
  ASSERT_TRUE(push(disk, job, 0));
  ASSERT_TRUE(push(remote, job, 1));
  EXPECT_EQ(queues.clear(remote).size(), 1U);
  EXPECT_TRUE(pop());
  EXPECT_FALSE(pop());
}

}  // namespace
}  // namespace lmkv
