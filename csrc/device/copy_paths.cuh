// The three ways in which bytes go between paged blocks on a GPU and the host, one direction each.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/copy_list.hpp"
#include "device/cuda_objects.hpp"
#include "device/device.hpp"
#include "device/kernels.cuh"
#include "device/tile_table.hpp"
#include "device/transfer_options.hpp"

namespace lmkv {

// Queues transfers on streams of its own; nothing in it waits. Used by one thread.
class CopyPath {
 public:
  CopyPath() = default;
  CopyPath(const CopyPath&) = delete;
  CopyPath& operator=(const CopyPath&) = delete;
  virtual ~CopyPath() = default;

  // The stream whose work touches the paged blocks: it is what waits for fences.
  [[nodiscard]] virtual cudaStream_t paged_stream() const = 0;
  // The stream on which the work of a transfer ends.
  [[nodiscard]] virtual cudaStream_t last_stream() const = 0;
  // On failure part of the work may have been queued.
  [[nodiscard]] virtual cudaError_t enqueue(const Transfer& transfer) = 0;
};

// ---- Copy engines: one batch of copies, straight between blocks and host memory.

class CopyEnginePath final : public CopyPath {
 public:
  CopyEnginePath(const SegmentTable& table, int priority) : table_(table), stream_(priority) {}

  [[nodiscard]] cudaStream_t paged_stream() const override { return stream_.get(); }
  [[nodiscard]] cudaStream_t last_stream() const override { return stream_.get(); }

  [[nodiscard]] cudaError_t enqueue(const Transfer& transfer) override {
    CopyList copies = copies_of(transfer, table_);
#if CUDART_VERSION >= 12080
    if (batches_) {
      const cudaError_t error = enqueue_batch(copies);
      batches_ = error != cudaErrorNotSupported && error != cudaErrorCallRequiresNewerDriver;
      if (batches_) return error;
      static_cast<void>(cudaGetLastError());  // not sticky: forget it and take the long way
    }
#endif
    for (std::size_t i = 0; i < copies.sizes.size(); ++i) {
      const cudaError_t error = cudaMemcpyAsync(copies.destinations[i], copies.sources[i],
                                                copies.sizes[i], cudaMemcpyDefault, stream_.get());
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

 private:
#if CUDART_VERSION >= 12080
  // STREAM order: with ANY the source may be read before earlier work on the stream, here the wait
  // for the fence, is done.
  [[nodiscard]] cudaError_t enqueue_batch(CopyList& copies) {
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    std::size_t first = 0;
#if CUDART_VERSION >= 13000
    return cudaMemcpyBatchAsync(const_cast<const void**>(copies.destinations.data()),
                                copies.sources.data(), copies.sizes.data(), copies.sizes.size(),
                                &attributes, &first, 1, stream_.get());
#else
    std::size_t failed = 0;
    return cudaMemcpyBatchAsync(
        copies.destinations.data(), const_cast<void**>(copies.sources.data()), copies.sizes.data(),
        copies.sizes.size(), &attributes, &first, 1, &failed, stream_.get());
#endif
  }

  bool batches_ = true;  // until the driver turns out not to have them (before 12.8)
#endif

  const SegmentTable& table_;
  CudaStream stream_;
};

// ---- Kernels

// The layout in device memory, and the launches over it.
class BlockKernel {
 public:
  BlockKernel(const SegmentTable& table, unsigned thread_blocks)
      : BlockKernel(make_tile_table(table), thread_blocks) {}

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
  BlockKernel(const TileTable& tiles, unsigned thread_blocks)
      : segments_(tiles.segments.size() * sizeof(TiledSegment)),
        segment_count_(static_cast<std::uint32_t>(tiles.segments.size())),
        tiles_per_block_(tiles.tiles_per_block),
        // Tiles of a launch are counted in 32 bits, of which the loop's last step needs one.
        most_blocks_(std::clamp((1u << 31) / tiles_per_block_, 1u, kMaxLaunchBlocks)),
        thread_blocks_(thread_blocks) {
    require(cudaMemcpy(segments_.get(), tiles.segments.data(),
                       tiles.segments.size() * sizeof(TiledSegment), cudaMemcpyDefault),
            "cudaMemcpy of the layout");
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

// Straight between blocks and pinned host memory: the kernel's own accesses cross the link.
class MappedKernelPath final : public CopyPath {
 public:
  // `host_to_device`: what to add to a pinned host address to get the GPU's own for it.
  MappedKernelPath(const SegmentTable& table, unsigned thread_blocks, int priority,
                   std::ptrdiff_t host_to_device)
      : block_bytes_(table.block_bytes()),
        kernel_(table, thread_blocks),
        stream_(priority),
        host_to_device_(host_to_device) {}

  [[nodiscard]] cudaStream_t paged_stream() const override { return stream_.get(); }
  [[nodiscard]] cudaStream_t last_stream() const override { return stream_.get(); }

  [[nodiscard]] cudaError_t enqueue(const Transfer& transfer) override {
    const auto contiguous = reinterpret_cast<std::uintptr_t>(transfer.host) +
                            static_cast<std::uintptr_t>(host_to_device_);
    return kernel_.launch(transfer.direction, transfer.blocks, block_bytes_, contiguous,
                          stream_.get());
  }

 private:
  const std::size_t block_bytes_;
  BlockKernel kernel_;
  CudaStream stream_;
  std::ptrdiff_t host_to_device_;
};

// Between blocks and a buffer on the device by kernel, and between that and the host by one DMA.
//
// Kernels and DMAs are on a stream each, with three buffers between them: while one buffer is
// filled another is emptied, so that the link is never idle. Events say when a buffer is full and
// when it is free again.
class StagedKernelPath final : public CopyPath {
 public:
  StagedKernelPath(const SegmentTable& table, Direction direction, unsigned thread_blocks,
                   std::size_t staging_bytes, int priority)
      : block_bytes_(table.block_bytes()),
        blocks_per_buffer_(std::max<std::size_t>(staging_bytes / block_bytes_, 1)),
        direction_(direction),
        kernel_(table, thread_blocks),
        kernel_stream_(priority),
        copy_stream_(priority),
        memory_(kBuffers * blocks_per_buffer_ * block_bytes_) {}

  [[nodiscard]] cudaStream_t paged_stream() const override { return kernel_stream_.get(); }
  [[nodiscard]] cudaStream_t last_stream() const override {
    return direction_ == Direction::kGather ? copy_stream_.get() : kernel_stream_.get();
  }

  [[nodiscard]] cudaError_t enqueue(const Transfer& transfer) override {
    std::span<const BlockId> blocks = transfer.blocks;
    std::byte* host = transfer.host;
    while (!blocks.empty()) {
      const std::span<const BlockId> piece =
          blocks.first(std::min(blocks.size(), blocks_per_buffer_));
      const cudaError_t error = enqueue_piece(piece, host);
      if (error != cudaSuccess) return error;
      host += piece.size() * block_bytes_;
      blocks = blocks.subspan(piece.size());
    }
    return cudaSuccess;
  }

 private:
  static constexpr std::size_t kBuffers = 3;

  // Both are recorded on the stream that fills, or empties, the buffer. An event that was never
  // recorded counts as reached.
  struct BufferEvents {
    CudaEvent full;
    CudaEvent free;
  };

  [[nodiscard]] cudaError_t enqueue_piece(std::span<const BlockId> blocks, std::byte* host) {
    const std::size_t bytes = blocks.size() * block_bytes_;
    std::byte* const buffer = memory_.get() + next_ * blocks_per_buffer_ * block_bytes_;
    const BufferEvents& events = events_[next_];
    next_ = (next_ + 1) % kBuffers;
    const bool gathers = direction_ == Direction::kGather;
    const cudaStream_t fills = gathers ? kernel_stream_.get() : copy_stream_.get();
    const cudaStream_t empties = gathers ? copy_stream_.get() : kernel_stream_.get();
    const auto run_kernel = [&] {
      return kernel_.launch(direction_, blocks, block_bytes_,
                            reinterpret_cast<std::uintptr_t>(buffer), kernel_stream_.get());
    };
    const auto copy = [&](void* to, const void* from) {
      return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, copy_stream_.get());
    };

    cudaError_t error = cudaStreamWaitEvent(fills, events.free.get(), 0);
    if (error == cudaSuccess) error = gathers ? run_kernel() : copy(buffer, host);
    if (error == cudaSuccess) error = cudaEventRecord(events.full.get(), fills);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(empties, events.full.get(), 0);
    if (error == cudaSuccess) error = gathers ? copy(host, buffer) : run_kernel();
    if (error == cudaSuccess) error = cudaEventRecord(events.free.get(), empties);
    return error;
  }

  const std::size_t block_bytes_;
  const std::size_t blocks_per_buffer_;
  const Direction direction_;
  BlockKernel kernel_;
  CudaStream kernel_stream_;
  CudaStream copy_stream_;
  DeviceMemory memory_;
  std::array<BufferEvents, kBuffers> events_;
  std::size_t next_ = 0;
};

}  // namespace lmkv
