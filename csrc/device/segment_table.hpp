// The layout of a paged KV cache, whatever the model, dtype or attention backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/types.hpp"

namespace lmkv {

// One dense run inside every block: bytes [base + id * block_stride, ... + bytes) of block `id`.
struct Segment {
  std::uintptr_t base = 0;
  std::size_t block_stride = 0;
  std::size_t bytes = 0;
};

// Segments in payload order. Neighbours that touch are merged, which changes no payload byte: with
// a block-outermost layout one segment, and so one copy a block, is left.
class SegmentTable {
 public:
  // Throws std::invalid_argument for an empty table, an empty segment or a stride shorter than its
  // segment.
  explicit SegmentTable(std::span<const Segment> segments);

  [[nodiscard]] std::span<const Segment> segments() const { return segments_; }
  [[nodiscard]] std::size_t block_bytes() const { return block_bytes_; }

 private:
  std::vector<Segment> segments_;
  std::size_t block_bytes_ = 0;
};

}  // namespace lmkv
