// The two ways in which kernels take part.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "device/block_kernel.cuh"
#include "device/copy_path.hpp"
#include "device/cuda_objects.hpp"
#include "device/device.hpp"

namespace lmkv {

// Straight between blocks and pinned host memory: the kernel's own accesses cross the link.
class MappedKernelPath final : public CopyPath {
 public:
  // `host_to_device`: what to add to a pinned host address to get the GPU's own for it.
  MappedKernelPath(const SegmentTable& table, unsigned thread_blocks, int priority,
                   std::ptrdiff_t host_to_device)
      : block_bytes_(table.block_bytes()),
        stream_(priority),
        kernel_(table, thread_blocks, stream_.get()),
        host_to_device_(host_to_device) {}

  [[nodiscard]] cudaStream_t paged_stream() const override { return stream_.get(); }
  [[nodiscard]] cudaStream_t last_stream() const override { return stream_.get(); }
  void drain() override { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  [[nodiscard]] cudaError_t enqueue(const Transfer& transfer) override {
    const auto contiguous = reinterpret_cast<std::uintptr_t>(transfer.host) +
                            static_cast<std::uintptr_t>(host_to_device_);
    return kernel_.launch(transfer.direction, transfer.blocks, block_bytes_, contiguous,
                          stream_.get());
  }

 private:
  const std::size_t block_bytes_;
  CudaStream stream_;
  BlockKernel kernel_;
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
        kernel_stream_(priority),
        copy_stream_(priority),
        kernel_(table, thread_blocks, kernel_stream_.get()),
        memory_(kBuffers * blocks_per_buffer_ * block_bytes_) {}

  [[nodiscard]] cudaStream_t paged_stream() const override { return kernel_stream_.get(); }
  [[nodiscard]] cudaStream_t last_stream() const override {
    return direction_ == Direction::kGather ? copy_stream_.get() : kernel_stream_.get();
  }
  void drain() override {
    static_cast<void>(cudaStreamSynchronize(kernel_stream_.get()));
    static_cast<void>(cudaStreamSynchronize(copy_stream_.get()));
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
  CudaStream kernel_stream_;
  CudaStream copy_stream_;
  BlockKernel kernel_;
  DeviceMemory memory_;
  std::array<BufferEvents, kBuffers> events_;
  std::size_t next_ = 0;
};

}  // namespace lmkv
