#include <gtest/gtest.h>

#include <chrono>

#include "engine/load_patience.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kGigabyte = 1'000'000'000;
constexpr std::uint64_t kSecond = 1'000'000;  // microseconds

TEST(LoadPatience, AFixedTimeStays) {
  LoadPatience patience(1500ms);
  patience.observe(kGigabyte, kSecond);
  EXPECT_EQ(patience.of(1), 1500ms);
  EXPECT_EQ(patience.of(100 * kGigabyte), 1500ms);
}

TEST(LoadPatience, IsEightTimesWhatTheBytesTakeWithinBounds) {
  LoadPatience patience(0s);
  EXPECT_EQ(patience.of(kGigabyte), 30s) << "nothing is known";
  patience.observe(kGigabyte, kSecond);
  EXPECT_EQ(patience.of(2 * kGigabyte), 16s);
  EXPECT_EQ(patience.of(1), 5s);
  EXPECT_EQ(patience.of(1000 * kGigabyte), 60s);
}

TEST(LoadPatience, FollowsTheRate) {
  LoadPatience patience(0s);
  patience.observe(kGigabyte, kSecond);
  patience.observe(kGigabyte + 1, kSecond + 1);  // too short a time to say anything
  EXPECT_EQ(patience.of(2 * kGigabyte), 16s);
  patience.observe(kGigabyte + kGigabyte / 2, 2 * kSecond);  // half of that, and half of it counts
  EXPECT_NEAR(std::chrono::duration<double>(patience.of(2 * kGigabyte)).count(), 16 / 0.75, 1e-3);
}

TEST(LoadPatience, ADirectoryThatDeliversNothingHasNoRate) {
  LoadPatience patience(0s);
  patience.observe(0, 60 * kSecond);
  EXPECT_EQ(patience.of(kGigabyte), 30s);
}

}  // namespace
}  // namespace lmkv
