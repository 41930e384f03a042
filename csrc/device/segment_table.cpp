#include "device/segment_table.hpp"

#include <stdexcept>

namespace lmkv {

SegmentTable::SegmentTable(std::span<const Segment> segments) {
  if (segments.empty()) throw std::invalid_argument("a layout needs at least one segment");
  for (const Segment& segment : segments) {
    if (segment.bytes == 0) throw std::invalid_argument("a segment needs at least one byte");
    if (segment.block_stride < segment.bytes) {
      throw std::invalid_argument("a segment's block stride is shorter than the segment");
    }
    block_bytes_ += segment.bytes;
    if (!segments_.empty()) {
      Segment& last = segments_.back();
      if (last.base + last.bytes == segment.base && last.block_stride == segment.block_stride &&
          last.bytes + segment.bytes <= last.block_stride) {
        last.bytes += segment.bytes;
        continue;
      }
    }
    segments_.push_back(segment);
  }
}

}  // namespace lmkv
