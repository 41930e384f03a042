#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "common/busy_time.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

TEST(BusyTime, CountsOperationsThatOverlapOnce) {
  BusyTime busy;
  const auto start = BusyTime::Clock::now();
  busy.begin();
  busy.begin();
  std::this_thread::sleep_for(20ms);
  busy.end();
  std::this_thread::sleep_for(20ms);
  busy.end();
  const auto passed =
      std::chrono::duration_cast<std::chrono::microseconds>(BusyTime::Clock::now() - start);
  EXPECT_GE(busy.microseconds(), 40'000U);
  EXPECT_LE(busy.microseconds(), static_cast<std::uint64_t>(passed.count()));
}

TEST(BusyTime, CountsNoTimeWithNothingUnderWay) {
  BusyTime busy;
  EXPECT_EQ(busy.microseconds(), 0U);
  busy.begin();
  busy.end();
  const std::uint64_t before = busy.microseconds();
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(busy.microseconds(), before);
}

TEST(BusyTime, CountsWhatIsUnderWayAndNeverGoesBack) {
  BusyTime busy;
  busy.begin();
  std::this_thread::sleep_for(10ms);
  const std::uint64_t during = busy.microseconds();
  EXPECT_GE(during, 10'000U);
  busy.end();
  EXPECT_GE(busy.microseconds(), during);
}

}  // namespace
}  // namespace lmkv
