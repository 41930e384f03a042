// The segment table as the kernels read it: every segment cut into tiles, the work of one warp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "device/segment_table.hpp"

namespace lmkv {

// What a warp copies at a time: small enough that a few KiB keep several warps busy, and two rounds
// of four vectors of 16 bytes in each of 32 lanes.
inline constexpr std::uint32_t kTileBytes = 4096;

struct TiledSegment {
  std::uint64_t base;            // of block 0's run
  std::uint64_t block_stride;    // bytes between a block's run and the next block's
  std::uint64_t bytes;           // of the run
  std::uint64_t payload_offset;  // of the run, in the block's contiguous bytes
  std::uint32_t first_tile;      // number, within a block, of the run's first tile
};

struct TileTable {
  std::vector<TiledSegment> segments;  // by first_tile, ascending from 0
  std::uint32_t tiles_per_block = 0;
};

// Throws std::invalid_argument for blocks so large (8 TiB) that tiles could not be counted.
[[nodiscard]] TileTable make_tile_table(const SegmentTable& table);

}  // namespace lmkv
