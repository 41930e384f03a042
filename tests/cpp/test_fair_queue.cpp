#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "common/fair_queue.hpp"

namespace lmkv {
namespace {

TEST(FairQueue, OwnersTakeTurnsAndEachKeepsItsOrder) {
  FairQueue<int> queue;
  for (const int item : {11, 12, 13, 14}) queue.push(1, item);
  for (const int item : {21, 22}) queue.push(2, item);
  std::vector<int> order;
  while (!queue.empty()) {
    const int front = queue.front();
    order.push_back(queue.pop());
    EXPECT_EQ(order.back(), front);
  }
  EXPECT_EQ(order, (std::vector{11, 21, 12, 22, 13, 14}));
}

TEST(FairQueue, ALateOwnerWaitsForOneTurnOnly) {
  FairQueue<int> queue;
  for (int item = 0; item < 500; ++item) queue.push(1, item);
  static_cast<void>(queue.pop());
  queue.push(2, 1000);
  static_cast<void>(queue.pop());
  EXPECT_EQ(queue.pop(), 1000);
}

TEST(FairQueue, AnOwnerThatComesBackGetsNoTurnTwice) {
  FairQueue<int> queue;
  queue.push(1, 11);
  static_cast<void>(queue.pop());
  queue.push(2, 21);
  queue.push(1, 12);
  queue.push(1, 13);
  EXPECT_EQ(queue.size(), 3U);
  EXPECT_EQ(queue.pop(), 21);
  EXPECT_EQ(queue.pop(), 12);
  EXPECT_EQ(queue.pop(), 13);
}

TEST(FairQueue, RemoveTakesOneOwnersAndClearTakesAll) {
  FairQueue<std::unique_ptr<int>> queue;  // what can only be moved
  for (int item = 0; item < 3; ++item) {
    queue.push(1, std::make_unique<int>(item));
    queue.push(2, std::make_unique<int>(10 + item));
  }
  EXPECT_TRUE(queue.remove(3).empty());
  const auto removed = queue.remove(1);
  ASSERT_EQ(removed.size(), 3U);
  EXPECT_EQ(*removed[0], 0);
  EXPECT_EQ(*removed[2], 2);
  EXPECT_EQ(queue.size(), 3U);
  EXPECT_TRUE(queue.remove(1).empty());
  queue.push(1, std::make_unique<int>(5));
  EXPECT_EQ(queue.clear().size(), 4U);
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.size(), 0U);
}

}  // namespace
}  // namespace lmkv
