#include "device/tile_table.hpp"

#include <limits>
#include <stdexcept>

namespace lmkv {

TileTable make_tile_table(const SegmentTable& table) {
  TileTable tiles;
  std::uint64_t payload_offset = 0;
  std::uint64_t tile = 0;
  for (const Segment& segment : table.segments()) {
    tiles.segments.push_back({segment.base, segment.block_stride, segment.bytes, payload_offset,
                              static_cast<std::uint32_t>(tile)});
    payload_offset += segment.bytes;
    tile += (segment.bytes + kTileBytes - 1) / kTileBytes;
    if (tile > std::numeric_limits<std::uint32_t>::max() / 2) {
      throw std::invalid_argument("a block of the KV cache is too large for the GPU kernels");
    }
  }
  tiles.tiles_per_block = static_cast<std::uint32_t>(tile);
  return tiles;
}

}  // namespace lmkv
