#include <gtest/gtest.h>

#include <chrono>

#include "engine/root_health.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

class RootHealthTest : public ::testing::Test {
 protected:
  void fail_three_times() {
    for (int i = 0; i < 3; ++i) health.failed("I/O error", now);
  }
  RootHealth health;
  RootHealth::Clock::time_point now = RootHealth::Clock::now();
};

TEST_F(RootHealthTest, ThreeFailuresInARowTakeItOut) {
  health.failed("I/O error", now);
  health.failed("I/O error", now);
  EXPECT_TRUE(health.admits(now));
  health.succeeded();
  health.failed("I/O error", now);
  health.failed("I/O error", now);
  EXPECT_FALSE(health.is_out());
  EXPECT_EQ(health.reason(), "");
  health.failed("I/O error", now);
  EXPECT_TRUE(health.is_out());
  EXPECT_EQ(health.reason(), "I/O error");
  EXPECT_FALSE(health.admits(now));
}

TEST_F(RootHealthTest, OneTrialIsAdmittedAfterThePauseAndASuccessEndsIt) {
  fail_three_times();
  EXPECT_FALSE(health.admits(now + 1999ms));
  EXPECT_TRUE(health.admits(now + 2s));
  EXPECT_FALSE(health.admits(now + 2s)) << "one at a time";
  health.succeeded();
  EXPECT_FALSE(health.is_out());
  EXPECT_TRUE(health.admits(now + 2s));
}

TEST_F(RootHealthTest, EveryTrialThatFailsDoublesThePauseUpToAMinute) {
  fail_three_times();
  for (const auto pause : {2s, 4s, 8s, 16s, 32s, 60s, 60s}) {
    EXPECT_FALSE(health.admits(now + pause - 1ms));
    now += pause;
    EXPECT_TRUE(health.admits(now));
    health.failed("I/O error", now);
  }
}

TEST_F(RootHealthTest, WhatWasAskedBeforeAndFailsLateDoesNotPutOffTheTrial) {
  fail_three_times();
  for (int i = 0; i < 100; ++i) health.failed("late", now + 1999ms);
  EXPECT_TRUE(health.admits(now + 2s));
}

TEST_F(RootHealthTest, ATrialThatNeverEndsIsFollowedByAnother) {
  fail_three_times();
  EXPECT_TRUE(health.admits(now + 2s));
  EXPECT_FALSE(health.admits(now + 3s));
  EXPECT_TRUE(health.admits(now + 4s));
}

TEST_F(RootHealthTest, AStallTakesItOutAtOnceUnlessSomethingSucceededMeanwhile) {
  health.succeeded();
  health.stalled(now - 1h, "reads take too long", now);
  EXPECT_FALSE(health.is_out());
  health.stalled(RootHealth::Clock::now() + 1s, "reads take too long", now);
  EXPECT_TRUE(health.is_out());
  EXPECT_EQ(health.reason(), "reads take too long");
}

}  // namespace
}  // namespace lmkv
