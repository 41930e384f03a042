// The copies that one transfer is made of, for the copy engines.
#pragma once

#include <cstddef>
#include <vector>

#include "device/device.hpp"
#include "device/segment_table.hpp"

namespace lmkv {

// Three arrays of one length, as cudaMemcpyBatchAsync takes them.
struct CopyList {
  std::vector<void*> destinations;
  std::vector<const void*> sources;
  std::vector<std::size_t> sizes;

  // A copy that goes on where the last one ends, in both memories, becomes part of it.
  void add(void* destination, const void* source, std::size_t bytes);
};

[[nodiscard]] CopyList copies_of(const Transfer& transfer, const SegmentTable& table);

}  // namespace lmkv
