#include <gtest/gtest.h>

#include <stdexcept>

#include "device/segment_table.hpp"

namespace lmkv {
namespace {

TEST(SegmentTable, ASegmentALayerStaysApart) {
  const std::vector<Segment> layers = {{0x10000, 512, 512}, {0x20000, 512, 512}};
  const SegmentTable table(layers);
  EXPECT_EQ(table.segments().size(), 2U);
  EXPECT_EQ(table.block_bytes(), 1024U);
}

TEST(SegmentTable, NeighboursInsideOneBlockBecomeOneCopy) {
  const std::vector<Segment> layers = {
      {0x10000, 1536, 512}, {0x10200, 1536, 512}, {0x10400, 1536, 512}};
  const SegmentTable table(layers);
  ASSERT_EQ(table.segments().size(), 1U);
  EXPECT_EQ(table.segments()[0].bytes, 1536U);
  EXPECT_EQ(table.block_bytes(), 1536U);
}

TEST(SegmentTable, LayersThatTouchOnlyAtTheEndOfTheirPoolsStayApart) {
  // One block of stride 512 a layer: the second layer's block 0 follows the first layer's block 0,
  // but block 1 does not exist. Merging would copy past the block's stride.
  const std::vector<Segment> layers = {{0x10000, 512, 512}, {0x10200, 512, 512}};
  EXPECT_EQ(SegmentTable(layers).segments().size(), 2U);
}

TEST(SegmentTable, RefusesWhatCannotBeALayout) {
  EXPECT_THROW(SegmentTable({}), std::invalid_argument);
  EXPECT_THROW(SegmentTable(std::vector<Segment>{{0x10000, 512, 0}}), std::invalid_argument);
  EXPECT_THROW(SegmentTable(std::vector<Segment>{{0x10000, 256, 512}}), std::invalid_argument);
}

}  // namespace
}  // namespace lmkv
