// The thread that makes an arena's pages when nothing else wants the processor.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "arena/arena_pages.hpp"
#include "chunk_tree.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kSlabBytes = 8 << 20;  // several pieces

class ArenaPagesTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::optional<ArenaPages::Outcome> wait_for_outcome() {
    std::optional<ArenaPages::Outcome> outcome;
    EXPECT_TRUE(test::eventually([&] { return (outcome = pages.outcome()).has_value(); }));
    return outcome;
  }
  [[nodiscard]] bool has_pages(std::uint32_t slot) const {
    const std::span<std::byte> slab = arena.slab(slot);
    std::vector<unsigned char> resident(slab.size() / kPageBytes);
    EXPECT_EQ(::mincore(slab.data(), slab.size(), resident.data()), 0);
    return std::ranges::all_of(resident, [](unsigned char each) { return (each & 1) != 0; });
  }

  test::TemporaryDirectory folder{"/dev/shm"};
  const ArenaFile arena = ArenaFile::open_or_create({folder.path(), kSlabBytes}, 4 * kSlabBytes);
  Doorbell done;
  ArenaPages pages{arena, done};
};

TEST_F(ArenaPagesTest, ASlotGetsItsPagesAndWhoGaveItIsTold) {
  EXPECT_FALSE(has_pages(1));
  EXPECT_FALSE(pages.is_busy());
  pages.give(1);
  done.wait();
  ASSERT_TRUE(pages.is_busy()) << "until its outcome is fetched";
  const auto outcome = pages.outcome();
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->order, ArenaPages::Order::kGive);
  EXPECT_EQ(outcome->slot, 1U);
  EXPECT_EQ(outcome->failed, 0);
  EXPECT_TRUE(has_pages(1));
  EXPECT_FALSE(has_pages(2));
  EXPECT_FALSE(pages.is_busy());
  EXPECT_FALSE(pages.outcome()) << "twice";

  pages.map(2);
  const auto mapped = wait_for_outcome();
  ASSERT_TRUE(mapped);
  EXPECT_EQ(mapped->order, ArenaPages::Order::kMap);
  EXPECT_EQ(mapped->failed, 0);
}

TEST_F(ArenaPagesTest, WhatWasOrderedIsThereWhenItHasStopped) {
  pages.give(3);
  pages.stop();
  const auto outcome = pages.outcome();
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->slot, 3U);
  EXPECT_EQ(outcome->failed == 0, has_pages(3));
  EXPECT_TRUE(outcome->failed == 0 || outcome->failed == ECANCELED) << outcome->failed;
  pages.stop();
  EXPECT_FALSE(pages.outcome());
}

TEST_F(ArenaPagesTest, NothingOrderedNothingToTell) {
  pages.stop();
  EXPECT_FALSE(pages.outcome());
}

// The forward pass behind a load would share its processors with it.
TEST_F(ArenaPagesTest, ItRunsWhenNothingElseWantsTo) {
  pages.give(0);
  ASSERT_TRUE(wait_for_outcome());
  std::vector<int> policies;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (name != "lmkv-pages") continue;
    policies.push_back(::sched_getscheduler(std::stoi(task.path().filename().string())));
  }
  EXPECT_EQ(policies, std::vector<int>{SCHED_IDLE});
}

TEST(ArenaFilePages, AnOrderThatIsNoLongerWantedEndsEarly) {
  const test::TemporaryDirectory folder{"/dev/shm"};
  const ArenaFile arena = ArenaFile::open_or_create({folder.path(), kSlabBytes}, 4 * kSlabBytes);
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(arena.give_pages(0, stop.get_token()), ECANCELED);
  EXPECT_EQ(arena.give_pages(0), 0);
}

// Any ring ends one wait, before it or during it, and many are one.
TEST(DoorbellTest, RingsAreNeitherLostNorKept) {
  Doorbell bell;
  bell.ring();
  bell.ring();
  bell.wait();
  const auto begun = std::chrono::steady_clock::now();
  bell.wait_until(begun + std::chrono::milliseconds(20));
  EXPECT_GE(std::chrono::steady_clock::now() - begun, std::chrono::milliseconds(20));
  bell.ring();
  bell.wait_until(std::chrono::steady_clock::now() + std::chrono::hours(1));
}

}  // namespace
}  // namespace lmkv
