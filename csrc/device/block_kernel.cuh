// The layout in a GPU's memory, and launches of the kernels over it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/types.hpp"
#include "device/cuda_objects.hpp"
#include "device/kernels.cuh"
#include "device/tile_table.hpp"
#include "device/transfer_options.hpp"

namespace lmkv {

class BlockKernel {
 public:
  // Blocks until the layout is there, by way of `stream`. Throws DeviceError.
  BlockKernel(const SegmentTable& table, unsigned thread_blocks, cudaStream_t stream)
      : BlockKernel(make_tile_table(table), thread_blocks, stream) {}

  // Whether this build has code that the current GPU runs.
  [[nodiscard]] static bool runs_here() {
    cudaFuncAttributes attributes{};
    const bool gathers =
        cudaFuncGetAttributes(&attributes, copy_blocks<Direction::kGather>) == cudaSuccess;
    const bool scatters =
        cudaFuncGetAttributes(&attributes, copy_blocks<Direction::kScatter>) == cudaSuccess;
    if (!gathers || !scatters) static_cast<void>(cudaGetLastError());
    return gathers && scatters;
  }

  // Copies blocks to or from the contiguous bytes at `contiguous`, an address the GPU can reach.
  [[nodiscard]] cudaError_t launch(Direction direction, std::span<const BlockId> blocks,
                                   std::size_t block_bytes, std::uint64_t contiguous,
                                   cudaStream_t stream) const {
    CopyLaunch launch{};
    launch.segments = reinterpret_cast<const TiledSegment*>(segments_.get());
    launch.segment_count = segment_count_;
    launch.tiles_per_block = tiles_per_block_;
    while (!blocks.empty()) {
      const std::size_t count = std::min<std::size_t>(blocks.size(), most_blocks_);
      for (std::size_t i = 0; i < count; ++i) {
        launch.blocks[i] = {contiguous, static_cast<std::uint64_t>(blocks[i])};
        contiguous += block_bytes;
      }
      launch.block_count = static_cast<std::uint32_t>(count);
      const cudaError_t error = launch_one(direction, launch, stream);
      if (error != cudaSuccess) return error;
      blocks = blocks.subspan(count);
    }
    return cudaSuccess;
  }

 private:
  BlockKernel(const TileTable& tiles, unsigned thread_blocks, cudaStream_t stream)
      : segments_(tiles.segments.size() * sizeof(TiledSegment)),
        segment_count_(static_cast<std::uint32_t>(tiles.segments.size())),
        tiles_per_block_(tiles.tiles_per_block),
        // Tiles of a launch are counted in 32 bits, of which the loop's last step needs one.
        most_blocks_(std::clamp((1u << 31) / tiles_per_block_, 1u, kMaxLaunchBlocks)),
        thread_blocks_(thread_blocks) {
    const std::size_t bytes = tiles.segments.size() * sizeof(TiledSegment);
    require(
        cudaMemcpyAsync(segments_.get(), tiles.segments.data(), bytes, cudaMemcpyDefault, stream),
        "cudaMemcpy of the layout");
    require(cudaStreamSynchronize(stream), "cudaMemcpy of the layout");
  }

  [[nodiscard]] cudaError_t launch_one(Direction direction, CopyLaunch& launch,
                                       cudaStream_t stream) const {
    const std::uint32_t tiles = launch.block_count * tiles_per_block_;
    const unsigned warps_per_block = kCopyThreads / kWarpLanes;
    const unsigned wanted = (tiles + warps_per_block - 1) / warps_per_block;
    const dim3 grid(std::min(thread_blocks_, wanted));
    void* arguments[] = {&launch};
    return direction == Direction::kGather
               ? cudaLaunchKernel(copy_blocks<Direction::kGather>, grid, dim3(kCopyThreads),
                                  arguments, 0, stream)
               : cudaLaunchKernel(copy_blocks<Direction::kScatter>, grid, dim3(kCopyThreads),
                                  arguments, 0, stream);
  }

  DeviceMemory segments_;
  std::uint32_t segment_count_;
  std::uint32_t tiles_per_block_;
  unsigned most_blocks_;
  unsigned thread_blocks_;
};

}  // namespace lmkv
