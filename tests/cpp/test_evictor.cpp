#include <gtest/gtest.h>

#include <random>

#include "chunk_tree.hpp"
#include "store/evictor.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::ChunkTree;

constexpr std::int64_t kAllSettled = std::numeric_limits<std::int64_t>::max();

Candidate worth(double value, std::uint64_t n = 0) {
  Candidate candidate;
  candidate.worth = value;
  candidate.key = ChunkTree::key(n);
  return candidate;
}

TEST(Candidates, AreTheLeastOfAllThatWereOfferedAndLeastFirst) {
  Candidates candidates(100);
  std::vector<double> values(5000);
  std::mt19937 random(1);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(random() % 4000);
  for (const double value : values) candidates.offer(worth(value));
  EXPECT_EQ(candidates.size(), 100U);
  std::ranges::sort(values);
  for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(candidates.take()->worth, values[i]) << i;
  EXPECT_FALSE(candidates.take());
  candidates.clear();
  candidates.offer(worth(7));
  EXPECT_EQ(candidates.take()->worth, 7);
}

TEST(Candidates, OfEqualWorthComeInTheSameOrderHoweverTheyWereFound) {
  const auto order = [](std::initializer_list<std::uint64_t> offered) {
    Candidates candidates(3);
    for (const std::uint64_t n : offered) candidates.offer(worth(1, n));
    std::vector<ChunkKey> keys;
    while (const auto candidate = candidates.take()) keys.push_back(candidate->key);
    return keys;
  };
  EXPECT_EQ(order({1, 2, 3, 4, 5}), order({5, 3, 1, 4, 2}));
}

TEST(Candidates, OfEqualWorthTheLeastRecentlyUsedComesFirst) {
  Candidates candidates(10);
  for (const std::uint64_t n : {3U, 1U, 2U}) {
    Candidate candidate = worth(1, 10 - n);
    candidate.modified_ns = static_cast<std::int64_t>(n);
    candidates.offer(candidate);
  }
  for (std::int64_t n = 1; n <= 3; ++n) {
    ASSERT_NE(candidates.next(), nullptr);
    EXPECT_EQ(candidates.next()->modified_ns, n);
    EXPECT_EQ(candidates.take()->modified_ns, n);
  }
  EXPECT_EQ(candidates.next(), nullptr);
}

class EvictTest : public ::testing::Test {
 protected:
  EvictTest() {
    path = tree.put(1, 2 * kPageBytes, 1h);
    candidate.key = ChunkTree::key(1);
    const std::string name = test::digest_of<NamespaceDigest>(1).hex();
    std::copy_n(name.begin(), 16, candidate.rank.namespace16.begin());
    candidate.modified_ns = test::modified_ns(path);
  }
  ChunkTree tree;
  std::string path;
  Candidate candidate;
};

TEST_F(EvictTest, RemovesTheFileAndNothingBesideIt) {
  const std::string other = tree.put(2, kPageBytes, 1h);
  EXPECT_EQ(evict(tree.root(), candidate, kAllSettled), Eviction::kEvicted);
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(std::filesystem::exists(other));
  EXPECT_EQ(evict(tree.root(), candidate, kAllSettled), Eviction::kGone);
}

TEST_F(EvictTest, WhatWasUsedSinceItWasScannedStays) {
  ChunkTree::set_used(path, 1min);
  EXPECT_EQ(evict(tree.root(), candidate, kAllSettled), Eviction::kKept);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(EvictTest, WhatWasTouchedAMomentAgoStaysThoughItsStampIsOld) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  EXPECT_EQ(evict(tree.root(), candidate, std::chrono::nanoseconds(now - 5s).count()),
            Eviction::kKept);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(EvictTest, WhatChangedInTheFutureDidNotAndGoes) {
  const auto before = std::chrono::system_clock::now().time_since_epoch() - 2h;
  const std::int64_t now = std::chrono::nanoseconds(before).count();
  EXPECT_EQ(evict(tree.root(), candidate, now - 5'000'000'000, now), Eviction::kEvicted);
}

TEST_F(EvictTest, ALinkADirectoryOrALinkOnTheWayIsNotTouched) {
  namespace fs = std::filesystem;
  const test::TemporaryDirectory elsewhere;
  const std::string precious = elsewhere / fs::path(path).filename().string();
  fs::rename(path, precious);
  fs::create_symlink(precious, path);
  EXPECT_EQ(evict(tree.root(), candidate, kAllSettled), Eviction::kGone);
  EXPECT_TRUE(fs::is_symlink(path));

  fs::remove(path);
  fs::create_directory(path);
  EXPECT_EQ(evict(tree.root(), candidate, kAllSettled), Eviction::kGone);
  EXPECT_TRUE(fs::is_directory(path));

  const fs::path fan_out = fs::path(path).parent_path();
  fs::remove_all(fan_out);
  fs::create_directory_symlink(elsewhere.path(), fan_out);
  EXPECT_EQ(evict(tree.root(), candidate, kAllSettled), Eviction::kGone);
  EXPECT_TRUE(fs::exists(precious));
}

TEST_F(EvictTest, WhatMayNotBeRemovedIsAFailure) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may remove everything";
  const std::string fan_out = std::filesystem::path(path).parent_path();
  ASSERT_EQ(::chmod(fan_out.c_str(), 0500), 0);
  EXPECT_EQ(evict(tree.root(), candidate, kAllSettled), Eviction::kFailed);
  ASSERT_EQ(::chmod(fan_out.c_str(), 0700), 0);
}

}  // namespace
}  // namespace lmkv
