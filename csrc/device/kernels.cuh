// Gather and scatter: paged KV blocks to and from contiguous bytes, whatever their layout.
//
// Plain CUDA C++: what is not C++ is the launch, the thread's place in it, and the streaming loads
// and stores. tests/kernels compiles this file with the host's compiler and runs every thread.
//
// A warp copies a tile at a time: a lane has kVectorsInFlight loads on their way before it stores
// the first, which is what keeps a link busy with few thread blocks (docs/gpu-transfer.md has the
// arithmetic). Cache hints say that the bytes are used once, so that the model's stay in the L2.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device/tile_table.hpp"
#include "device/transfer_options.hpp"

namespace lmkv {

inline constexpr unsigned kWarpLanes = 32;
inline constexpr unsigned kCopyThreads = 512;
inline constexpr unsigned kThreadBlocksPerSm = 2;  // that fit at least: 64 registers a thread
inline constexpr unsigned kVectorsInFlight = 4;

// Blocks of one launch: they are handed over as the kernel's parameter, of 4 KiB at most, so that
// nothing needs to be uploaded and kept until the kernel has run.
inline constexpr unsigned kMaxLaunchBlocks = 250;

struct BlockCopy {
  std::uint64_t contiguous;  // address of the block's first byte there
  std::uint64_t block;       // number in the paged cache
};

struct CopyLaunch {
  const TiledSegment* segments;  // in device memory
  std::uint32_t segment_count;
  std::uint32_t tiles_per_block;
  std::uint32_t block_count;
  BlockCopy blocks[kMaxLaunchBlocks];
};
static_assert(sizeof(CopyLaunch) <= 4096, "kernel parameters before CUDA 12.1 have 4 KiB");

// The last segment that begins at or before `tile`.
__device__ inline const TiledSegment& segment_of(const CopyLaunch& launch, std::uint32_t tile) {
  std::uint32_t low = 0;
  std::uint32_t high = launch.segment_count;
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    if (launch.segments[middle].first_tile <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return launch.segments[low];
}

// Copies up to a tile, by one warp. Both addresses are equally far from a whole Word.
template <typename Word>
__device__ inline void copy_words(std::uint8_t* to, const std::uint8_t* from, std::uint32_t bytes,
                                  std::uint32_t lane) {
  const auto misaligned =
      static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(from) % sizeof(Word));
  std::uint32_t head = misaligned == 0 ? 0 : static_cast<std::uint32_t>(sizeof(Word)) - misaligned;
  if (head > bytes) head = bytes;
  const std::uint32_t words = (bytes - head) / static_cast<std::uint32_t>(sizeof(Word));
  const std::uint32_t tail_begin = head + words * static_cast<std::uint32_t>(sizeof(Word));

  // What is before the first whole word and behind the last is shorter than one: a byte a lane.
  if (lane < head) to[lane] = from[lane];
  if (lane < bytes - tail_begin) to[tail_begin + lane] = from[tail_begin + lane];

  const auto* source = reinterpret_cast<const Word*>(from + head);
  auto* target = reinterpret_cast<Word*>(to + head);
  for (std::uint32_t at = lane; at < words; at += kVectorsInFlight * kWarpLanes) {
    Word vectors[kVectorsInFlight];
#pragma unroll
    for (unsigned i = 0; i < kVectorsInFlight; ++i) {
      if (at + i * kWarpLanes < words) vectors[i] = __ldcs(source + at + i * kWarpLanes);
    }
#pragma unroll
    for (unsigned i = 0; i < kVectorsInFlight; ++i) {
      if (at + i * kWarpLanes < words) __stcs(target + at + i * kWarpLanes, vectors[i]);
    }
  }
}

// As above, for any two addresses: by the widest word that both sides can be aligned to.
__device__ inline void copy_tile(std::uint8_t* to, const std::uint8_t* from, std::uint32_t bytes,
                                 std::uint32_t lane) {
  const std::uintptr_t skew =
      reinterpret_cast<std::uintptr_t>(to) ^ reinterpret_cast<std::uintptr_t>(from);
  if (skew % sizeof(uint4) == 0) {
    copy_words<uint4>(to, from, bytes, lane);
  } else if (skew % sizeof(std::uint32_t) == 0) {
    copy_words<std::uint32_t>(to, from, bytes, lane);
  } else {
    copy_words<std::uint8_t>(to, from, bytes, lane);
  }
}

template <Direction direction>
__global__ void __launch_bounds__(kCopyThreads, kThreadBlocksPerSm)
    copy_blocks(const __grid_constant__ CopyLaunch launch) {
  const std::uint32_t lane = threadIdx.x % kWarpLanes;
  const std::uint32_t warps_per_block = blockDim.x / kWarpLanes;
  const std::uint32_t warps = gridDim.x * warps_per_block;
  const std::uint32_t tiles = launch.block_count * launch.tiles_per_block;
  for (std::uint32_t tile = blockIdx.x * warps_per_block + threadIdx.x / kWarpLanes; tile < tiles;
       tile += warps) {
    const BlockCopy& copy = launch.blocks[tile / launch.tiles_per_block];
    const std::uint32_t tile_of_block = tile % launch.tiles_per_block;
    const TiledSegment& segment = segment_of(launch, tile_of_block);
    const std::uint64_t offset = std::uint64_t{tile_of_block - segment.first_tile} * kTileBytes;
    const std::uint64_t rest = segment.bytes - offset;
    const auto bytes = static_cast<std::uint32_t>(rest < kTileBytes ? rest : kTileBytes);
    auto* const paged =
        reinterpret_cast<std::uint8_t*>(segment.base + copy.block * segment.block_stride + offset);
    auto* const contiguous =
        reinterpret_cast<std::uint8_t*>(copy.contiguous + segment.payload_offset + offset);
    if constexpr (direction == Direction::kGather) {
      copy_tile(contiguous, paged, bytes, lane);
    } else {
      copy_tile(paged, contiguous, bytes, lane);
    }
  }
}

}  // namespace lmkv
