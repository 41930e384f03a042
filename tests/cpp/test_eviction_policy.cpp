#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "chunk_tree.hpp"
#include "store/eviction_policy.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::ChunkTree;

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kHour = 3600 * kSecond;
constexpr std::int64_t kStart = 1'700'000'000 * kSecond;

TEST(LeastRecentlyUsed, TellsTheChunksOfOneRequestApart) {
  const auto policy = make_least_recently_used();
  const UseTime now = std::chrono::system_clock::now();
  const std::int64_t now_ns = std::chrono::nanoseconds(now.time_since_epoch()).count();
  policy->begin_scan(now_ns + 1000 * 24 * kHour);
  const auto of = [&](UseTime used, std::uint64_t token) {
    return policy->worth({}, {}, {0, use_stamp(used, token, now), 0});
  };
  EXPECT_GT(of(now, 0), of(now, 16));
  EXPECT_GT(of(now, 16), of(now, 32));
  EXPECT_GT(of(now, 1 << 20), of(now - 20s, 0));
}

// Files, and an engine that uses them.
class ReuseTest : public ::testing::Test {
 protected:
  struct File {
    std::int64_t modified_ns = 0;  // 0: there is none
    std::uint64_t token = 0;
  };

  void use(std::uint64_t n, std::uint64_t token = 0) {
    File& file = files.at(n);
    file.token = token;
    const std::int64_t stamp =
        stamp::with_uses(now - now % stamp::kTickNs - static_cast<std::int64_t>(token) * 1000, 0);
    file.modified_ns = file.modified_ns == 0 ? stamp : renewed(file.modified_ns, stamp);
  }
  // Worths of all files that are there, by number; NaN of the others.
  std::vector<double> scan() {
    policy->begin_scan(now);
    std::vector<double> worths(files.size(), std::nan(""));
    for (std::uint64_t n = 0; n < files.size(); ++n) {
      if (files[n].modified_ns != 0) worths[n] = worth(n, files[n].modified_ns, now);
    }
    return worths;
  }
  double worth(std::uint64_t n, std::int64_t modified_ns, std::int64_t changed_ns) {
    FileFacts facts;
    facts.modified_ns = modified_ns;
    facts.changed_ns = changed_ns;
    return policy->worth(RankName{}, ChunkTree::key(n), facts);
  }
  void evict(std::uint64_t n) {
    files.at(n).modified_ns = 0;
    policy->evicted(RankName{}, ChunkTree::key(n));
  }

  std::unique_ptr<EvictionPolicy> policy = make_reuse_policy();
  std::vector<File> files = std::vector<File>(2000);
  std::int64_t now = kStart;
};

TEST_F(ReuseTest, WhileNothingIsKnownTheLeastRecentlyUsedGoFirst) {
  for (std::uint64_t n = 0; n < 1000; ++n, now += 7 * kSecond) use(n);
  const std::vector<double> worths = scan();
  for (std::uint64_t n = 1; n < 1000; ++n) EXPECT_GE(worths[n], worths[n - 1]) << n;
  EXPECT_GT(worths[999], worths[0]);
}

TEST_F(ReuseTest, WhatIsUsedAgainAndAgainIsWorthMoreThanWhatWasUsedLater) {
  // A hundred are used every hour. Others come, ten a minute, and are never used again.
  std::uint64_t fresh = 100;
  for (int hour = 0; hour < 3; ++hour) {
    for (std::uint64_t n = 0; n < 100; ++n) use(n);
    for (int minute = 0; minute < 60; ++minute, now += kHour / 60) {
      for (int i = 0; i < 10; ++i) use(fresh++);
      scan();
    }
  }
  const std::vector<double> worths = scan();
  EXPECT_GT(worths[0], worths[fresh - 10 * 20]) << "used 20 minutes ago, and not again";
}

TEST_F(ReuseTest, WhatComesBackAfterItWasEvictedBringsItsUsesAlong) {
  for (std::uint64_t n = 0; n < 1000; ++n) use(n);
  for (int round = 0; round < 6; ++round, now += 600 * kSecond) {
    for (std::uint64_t n = 0; n < 100; ++n) use(n);  // those are worth keeping
    scan();
  }
  evict(0);
  now += 600 * kSecond;
  scan();
  use(0);     // its file is new and says nothing of its uses
  use(1999);  // so does this one, which there never was
  scan();
  now += 600 * kSecond;
  const std::vector<double> worths = scan();
  EXPECT_EQ(use_of(files[0].modified_ns).again, 0U);
  EXPECT_GT(worths[0], worths[1999]);
}

TEST_F(ReuseTest, AHeadIsNeverWorthLessThanWhatIsBehindItWhateverWasLearnt) {
  std::mt19937 random(1);
  const auto any = [&](std::uint64_t below) { return random() % below; };
  for (int history = 0; history < 6; ++history) {
    policy = make_reuse_policy();
    std::ranges::fill(files, File{});
    // The more a chunk was used the less it is, the deeper the more: as wrong as can be.
    for (int step = 0; step < 200; ++step, now += kSecond << any(14)) {
      for (int i = 0; i < 20; ++i)
        use(any(200 + 9 * static_cast<std::uint64_t>(step)), any(1 << 16));
      if (any(3) == 0) evict(any(files.size()));
      scan();
    }
    for (int pair = 0; pair < 2000; ++pair) {
      const std::int64_t age = kSecond * static_cast<std::int64_t>(any(1 << 20));
      const std::int64_t later = age / static_cast<std::int64_t>(1 + any(1 << any(16)));
      const auto depth = static_cast<std::int64_t>(any(1 << 17));
      const auto less = depth / static_cast<std::int64_t>(1 + any(64));
      const auto uses = static_cast<unsigned>(any(kMostUses + 1));
      const auto more = std::min(uses + static_cast<unsigned>(any(6)), kMostUses);
      const auto stamped = [&](std::int64_t ago, std::int64_t token, unsigned again) {
        const std::int64_t used = now - ago;
        return stamp::with_uses(used - used % stamp::kTickNs - token * 1000, again);
      };
      // Neither was ever seen.
      const double tail = worth(100'000, stamped(age, depth, uses), now);
      const double head = worth(200'000, stamped(later, less, more), now);
      EXPECT_GE(head, tail) << "ages " << later << " " << age << ", tokens " << less << " " << depth
                            << ", uses " << more << " " << uses;
      policy->begin_scan(now);  // or they were seen by now
    }
  }
}

TEST_F(ReuseTest, WithFarMoreFilesThanAreRememberedTheyStillGoInOrder) {
  policy = make_reuse_policy({.remembered = 100});
  for (std::uint64_t n = 0; n < files.size(); ++n, now += 7 * kSecond) {
    use(n);
    if (n % 100 == 0) scan();
  }
  const std::vector<double> worths = scan();
  for (std::uint64_t n = 1; n < files.size(); ++n) EXPECT_GE(worths[n], worths[n - 1]) << n;
}

}  // namespace
}  // namespace lmkv
