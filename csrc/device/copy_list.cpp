#include "device/copy_list.hpp"

#include <cstdint>

namespace lmkv {

void CopyList::add(void* destination, const void* source, std::size_t bytes) {
  if (!sizes.empty()) {
    const std::size_t last = sizes.back();
    if (static_cast<char*>(destinations.back()) + last == destination &&
        static_cast<const char*>(sources.back()) + last == source) {
      sizes.back() += bytes;
      return;
    }
  }
  destinations.push_back(destination);
  sources.push_back(source);
  sizes.push_back(bytes);
}

CopyList copies_of(const Transfer& transfer, const SegmentTable& table) {
  CopyList copies;
  const std::size_t most = transfer.blocks.size() * table.segments().size();
  copies.destinations.reserve(most);
  copies.sources.reserve(most);
  copies.sizes.reserve(most);
  std::byte* host = transfer.host;
  for (const BlockId block : transfer.blocks) {
    for (const Segment& segment : table.segments()) {
      auto* const paged = reinterpret_cast<std::byte*>(
          segment.base + static_cast<std::size_t>(block) * segment.block_stride);
      if (transfer.direction == Direction::kGather) {
        copies.add(host, paged, segment.bytes);
      } else {
        copies.add(paged, host, segment.bytes);
      }
      host += segment.bytes;
    }
  }
  return copies;
}

}  // namespace lmkv
