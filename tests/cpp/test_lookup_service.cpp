#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "store/lookup_service.hpp"
#include "store/striped_lookup.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::digest_of;

using Seconds = LookupService::Seconds;
constexpr Seconds kNow{0};
constexpr Seconds kLong{30};

// What the filesystem would say, and how often it was asked. Outlives threads that hang in it.
class Filesystem {
 public:
  std::vector<bool> ask(std::span<const ChunkKey> keys, Until until) {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    const bool follower = keys.front().bytes[0] >= held_from_;
    changed_.wait(lock, [&] { return follower ? !followers_held_ : !held_ || let_through_ > 0; });
    if (let_through_ > 0) --let_through_;
    --waiting_;
    std::vector<bool> there;
    for (const ChunkKey& key : keys) {
      ++asked_;
      there.push_back(there_.contains(key.hex()));
      if (!there.back() && until == Until::kFirstAbsent) break;
    }
    return there;
  }

  void put(const ChunkKey& key) {
    const std::lock_guard lock(mutex_);
    there_.insert(key.hex());
  }
  void remove(const ChunkKey& key) {
    const std::lock_guard lock(mutex_);
    there_.erase(key.hex());
  }
  void hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  // Only questions that begin with this key or a later one, until release_followers().
  void hold_from(std::uint8_t key) {
    const std::lock_guard lock(mutex_);
    held_from_ = key;
    followers_held_ = true;
  }
  void release_followers() {
    const std::lock_guard lock(mutex_);
    followers_held_ = false;
    changed_.notify_all();
  }
  void let_one_through() {
    const std::lock_guard lock(mutex_);
    ++let_through_;
    changed_.notify_all();
  }
  void await_waiting(int threads) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= threads; });
  }
  std::size_t asked() {
    const std::lock_guard lock(mutex_);
    return asked_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> there_;
  bool held_ = false;
  bool followers_held_ = false;
  int held_from_ = 256;
  int waiting_ = 0;
  int let_through_ = 0;
  std::size_t asked_ = 0;
};

class LookupServiceTest : public ::testing::Test {
 protected:
  LookupServiceTest() {
    for (std::uint32_t i = 0; i < 200; ++i) {
      ChunkKey key;
      key.bytes[0] = static_cast<std::uint8_t>(i);
      key.bytes[20] = 7;
      keys.push_back(key);
    }
  }

  LookupService service(const LookupOptions& options = {}) {
    return LookupService(
        [filesystem = filesystem](std::span<const ChunkKey> asked, Until until) {
          return filesystem->ask(asked, until);
        },
        options);
  }

  void put(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) filesystem->put(keys[i]);
  }

  std::shared_ptr<Filesystem> filesystem = std::make_shared<Filesystem>();
  std::vector<ChunkKey> keys;
};

TEST_F(LookupServiceTest, TheLeadingRunIsFoundOverSeveralSlices) {
  LookupService lookups = service();
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{31}, std::size_t{32},
                                  std::size_t{33}, std::size_t{150}, keys.size()}) {
    put(count);
    EXPECT_EQ(lookups.lookup(keys, kLong), count);
  }
}

TEST_F(LookupServiceTest, WhatLiesBehindAHoleDoesNotCount) {
  put(100);
  filesystem->remove(keys[40]);
  EXPECT_EQ(service().lookup(keys, kLong), 40U);
}

TEST_F(LookupServiceTest, WhatLiesFarBehindAHoleIsNotAskedFor) {
  LookupOptions options;
  options.threads = 1;
  EXPECT_EQ(service(options).lookup(keys, kLong), 0U);
  EXPECT_EQ(filesystem->asked(), 1U);
}

TEST_F(LookupServiceTest, ASlowFilesystemIsAskedByAllThreadsAtOnce) {
  put(keys.size());
  LookupOptions options;
  options.threads = 3;
  LookupService lookups = service(options);
  filesystem->hold(true);
  EXPECT_EQ(lookups.lookup(keys, kNow), std::nullopt);
  filesystem->await_waiting(1);
  std::this_thread::sleep_for(1ms);
  filesystem->let_one_through();
  filesystem->await_waiting(3);
  filesystem->hold(false);
  EXPECT_EQ(lookups.lookup(keys, kLong), keys.size());
}

TEST_F(LookupServiceTest, ManyKeysAreAskedForByTwoThreadsAtOnce) {
  put(keys.size());
  LookupService lookups = service();
  filesystem->hold(true);
  EXPECT_EQ(lookups.lookup(keys, kNow), std::nullopt);
  filesystem->await_waiting(2);
  filesystem->hold(false);
  EXPECT_EQ(lookups.lookup(keys, kLong), keys.size());
}

TEST_F(LookupServiceTest, WhoWaitsIsWokenByAHoleThoughItsFollowersHaveNoAnswer) {
  put(keys.size());
  filesystem->remove(keys[20]);
  filesystem->hold(true);
  filesystem->hold_from(32);
  LookupOptions options;
  options.threads = 2;
  options.given_up_after = 60s;
  LookupService lookups = service(options);
  EXPECT_EQ(lookups.lookup(keys, kNow), std::nullopt);
  filesystem->await_waiting(2);  // the first slice and the second
  std::thread other([&] {
    std::this_thread::sleep_for(20ms);
    filesystem->hold(false);
  });
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(lookups.lookup(keys, kLong), 20U);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
  other.join();
  filesystem->release_followers();
}

TEST_F(LookupServiceTest, WhatWasThereIsNotAskedForAgain) {
  put(keys.size());
  LookupService lookups = service();
  ASSERT_EQ(lookups.lookup(keys, kLong), keys.size());
  const std::size_t asked = filesystem->asked();
  filesystem->hold(true);  // an answer now does not come from there
  EXPECT_EQ(lookups.lookup(keys, kNow), keys.size());
  const auto each = lookups.present(keys, kNow);
  ASSERT_TRUE(each);
  EXPECT_EQ(std::count(each->begin(), each->end(), true), std::ptrdiff_t(keys.size()));
  EXPECT_EQ(filesystem->asked(), asked);
  filesystem->hold(false);
}

TEST_F(LookupServiceTest, WhatIsForgottenIsAskedForAgainAndLateAnswersDoNotCount) {
  put(4);
  LookupService lookups = service();
  EXPECT_EQ(lookups.lookup(keys, kLong), 4U);
  for (const ChunkKey& key : keys) filesystem->remove(key);
  EXPECT_EQ(lookups.lookup(std::span(keys).first(4), kNow), 4U) << "it is believed";
  lookups.forget();
  EXPECT_EQ(lookups.lookup(keys, kLong), 0U);

  put(4);
  filesystem->hold(true);
  const std::size_t asked = filesystem->asked();
  EXPECT_EQ(lookups.lookup(std::span(keys).first(4), kNow), std::nullopt);
  filesystem->await_waiting(1);
  lookups.forget();
  filesystem->hold(false);  // the old question is answered: all are there
  while (filesystem->asked() < asked + 4) std::this_thread::sleep_for(1ms);
  for (const ChunkKey& key : keys) filesystem->remove(key);
  EXPECT_EQ(lookups.lookup(std::span(keys).first(4), kLong), 0U);
}

TEST_F(LookupServiceTest, WhatWasThereIsNotBelievedForEver) {
  put(keys.size());
  LookupOptions options;
  options.believed = 20ms;
  LookupService lookups = service(options);
  ASSERT_EQ(lookups.lookup(keys, kLong), keys.size());
  filesystem->remove(keys[3]);
  std::this_thread::sleep_for(2 * options.believed + 1ms);
  EXPECT_EQ(lookups.lookup(keys, kLong), 3U);
}

TEST_F(LookupServiceTest, WhatWasSeenBeforeATurnIsStillBelievedAndThenNot) {
  LookupOptions options;
  options.believed = 200ms;
  put(2);
  LookupService lookups = service(options);
  ASSERT_EQ(lookups.lookup({keys.data(), 1}, kLong), 1U);
  std::this_thread::sleep_for(options.believed + 1ms);
  ASSERT_EQ(lookups.lookup({keys.data() + 1, 1}, kLong), 1U);  // the turn
  filesystem->remove(keys[0]);
  std::this_thread::sleep_for(options.believed + 1ms);
  EXPECT_EQ(lookups.lookup({keys.data(), 1}, kLong), 0U);
}

TEST_F(LookupServiceTest, NoMoreIsRememberedThanIsAllowed) {
  put(keys.size());
  LookupOptions options;
  options.remembered = 64;
  LookupService lookups = service(options);
  for (const ChunkKey& key : keys) ASSERT_EQ(lookups.lookup({&key, 1}, kLong), 1U);
  const std::size_t asked = filesystem->asked();
  for (const ChunkKey& key : keys) ASSERT_EQ(lookups.lookup({&key, 1}, kLong), 1U);
  EXPECT_GE(filesystem->asked(), asked + keys.size() - 64);
}

TEST_F(LookupServiceTest, WhatWasAbsentIsAskedForAgain) {
  LookupService lookups = service();
  ASSERT_EQ(lookups.lookup(keys, kLong), 0U);
  ASSERT_EQ(lookups.present({keys.data(), 2}, kLong), std::vector<bool>({false, false}));
  put(2);
  EXPECT_EQ(lookups.present({keys.data(), 2}, kLong), std::vector<bool>({true, true}));
  EXPECT_EQ(lookups.lookup(keys, kLong), 2U);
}

TEST_F(LookupServiceTest, AnAbsenceThatNobodyCameForIsForgotten) {
  LookupOptions options;
  options.believed = 20ms;
  LookupService lookups = service(options);
  EXPECT_EQ(lookups.lookup({keys.data(), 1}, kNow), std::nullopt);
  while (filesystem->asked() == 0) std::this_thread::sleep_for(1ms);
  put(1);
  std::this_thread::sleep_for(2 * options.believed + 10ms);
  EXPECT_EQ(lookups.lookup({keys.data(), 1}, kLong), 1U);
}

TEST_F(LookupServiceTest, NobodyWaitsForASlowFilesystem) {
  put(2);
  LookupService lookups = service();
  filesystem->hold(true);
  EXPECT_EQ(lookups.lookup({keys.data(), 3}, kNow), std::nullopt);
  EXPECT_EQ(lookups.present({keys.data() + 10, 3}, 1ms), std::nullopt);
  filesystem->hold(false);
  // The answers of those questions are kept for whoever comes back, absence too.
  EXPECT_EQ(lookups.lookup({keys.data(), 3}, kLong), 2U);
  EXPECT_EQ(lookups.present({keys.data() + 10, 3}, kLong), std::vector<bool>(3, false));
  EXPECT_EQ(filesystem->asked(), 6U);
  EXPECT_EQ(lookups.given_up(), 0U);
}

TEST_F(LookupServiceTest, AsManyAskersOfOnePrefixAskTheFilesystemOnce) {
  put(20);
  LookupService lookups = service();
  filesystem->hold(true);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(lookups.lookup({keys.data(), 20}, kNow), std::nullopt);
  }
  filesystem->hold(false);
  EXPECT_EQ(lookups.lookup({keys.data(), 20}, kLong), 20U);
  EXPECT_EQ(filesystem->asked(), 20U);
}

TEST_F(LookupServiceTest, WhatAnotherAskedForIsNotAskedForTwice) {
  put(21);
  LookupService lookups = service();
  filesystem->hold(true);
  EXPECT_EQ(lookups.lookup({keys.data() + 1, 20}, kNow), std::nullopt);
  EXPECT_EQ(lookups.lookup({keys.data(), 21}, kNow), std::nullopt);
  filesystem->hold(false);
  EXPECT_EQ(lookups.lookup({keys.data(), 21}, kLong), 21U);
  EXPECT_EQ(filesystem->asked(), 21U);
}

TEST_F(LookupServiceTest, AFilesystemThatHangsHasNothingNew) {
  put(keys.size());
  LookupOptions options;
  options.given_up_after = 100ms;
  LookupService lookups = service(options);
  ASSERT_EQ(lookups.lookup({keys.data(), 5}, kLong), 5U);
  filesystem->hold(true);
  EXPECT_EQ(lookups.lookup(keys, kNow), std::nullopt);
  std::this_thread::sleep_for(options.given_up_after + 10ms);
  // What is known counts; the rest is given up, and what is new is not even asked for.
  EXPECT_EQ(lookups.lookup(keys, kNow), 5U);
  const ChunkKey another = digest_of<ChunkKey>(1);
  EXPECT_EQ(lookups.lookup({&another, 1}, kNow), 0U);
  EXPECT_EQ(lookups.present({keys.data() + 4, 2}, kNow), std::vector<bool>({true, false}));
  EXPECT_EQ(lookups.given_up(), 3U);
  filesystem->hold(false);
  for (;;) {  // until the threads are back
    if (lookups.lookup(keys, kLong) == keys.size()) break;
    std::this_thread::sleep_for(1ms);
  }
}

TEST_F(LookupServiceTest, AThreadThatHangsIsLeftBehind) {
  LookupOptions options;
  options.given_up_after = 10ms;
  {
    LookupService lookups = service(options);
    filesystem->hold(true);
    EXPECT_EQ(lookups.lookup(keys, kNow), std::nullopt);
    filesystem->await_waiting(1);
  }
  filesystem->hold(false);
  while (filesystem->asked() == 0) std::this_thread::sleep_for(1ms);
  while (filesystem.use_count() > 1) std::this_thread::sleep_for(1ms);  // the thread's own
}

TEST_F(LookupServiceTest, ManyCallersAtOnceGetTheRightAnswers) {
  put(150);
  LookupOptions options;
  options.believed = 1ms;
  LookupService lookups = service(options);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 100; ++i) {
        const std::size_t begin = static_cast<std::size_t>((caller * 37 + i) % 150);
        const std::span<const ChunkKey> some(keys.data() + begin, keys.size() - begin);
        EXPECT_EQ(lookups.lookup(some, kLong), 150 - begin);
        const auto each = lookups.present(some, kLong);
        ASSERT_TRUE(each);
        EXPECT_EQ(std::size_t(std::count(each->begin(), each->end(), true)), 150 - begin);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST_F(LookupServiceTest, ARootThatHangsSaysNothingNewAndTheOtherGoesOn) {
  const std::vector<std::string> roots{"/a", "/b"};
  const Stripes stripes(roots);
  auto other = std::make_shared<Filesystem>();
  std::vector<LookupService::Ask> asks;
  for (const auto& each : {filesystem, other}) {
    asks.emplace_back(
        [each](std::span<const ChunkKey> asked, Until until) { return each->ask(asked, until); });
  }
  LookupOptions options;
  options.given_up_after = 50ms;
  StripedLookup lookups(stripes, asks, options);
  std::vector<ChunkKey> of_other;
  for (const ChunkKey& key : keys) {
    (stripes.of(key) == 0 ? filesystem : other)->put(key);
    if (stripes.of(key) == 1) of_other.push_back(key);
  }
  EXPECT_EQ(lookups.lookup(keys, kLong), keys.size());
  const auto each = lookups.present(keys, kLong);
  ASSERT_TRUE(each);
  EXPECT_EQ(std::count(each->begin(), each->end(), true), std::ptrdiff_t(keys.size()));

  lookups.forget();
  filesystem->hold(true);
  EXPECT_EQ(lookups.lookup(keys, kNow), std::nullopt);
  std::this_thread::sleep_for(60ms);
  EXPECT_LT(lookups.lookup(keys, kNow).value_or(keys.size()), keys.size());
  EXPECT_GT(lookups.given_up(), 0U);
  lookups.forget();
  EXPECT_EQ(lookups.lookup(of_other, kLong), of_other.size());
  filesystem->hold(false);
}

}  // namespace
}  // namespace lmkv
