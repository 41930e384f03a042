// Copy engines: one batch of copies, straight between blocks and host memory. Uses no SM.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "device/copy_list.hpp"
#include "device/copy_path.hpp"
#include "device/cuda_objects.hpp"
#include "device/segment_table.hpp"

namespace lmkv {

class CopyEnginePath final : public CopyPath {
 public:
  // `batches`: the host memory is pinned, and the GPU reaches it under the host's own addresses. A
  // batch takes any others for device memory and ends the context; single copies find out.
  CopyEnginePath(const SegmentTable& table, int priority, bool batches)
      : table_(table), stream_(priority), batches_(batches) {}

  [[nodiscard]] cudaStream_t paged_stream() const override { return stream_.get(); }
  [[nodiscard]] cudaStream_t last_stream() const override { return stream_.get(); }
  void drain() override { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  [[nodiscard]] cudaError_t enqueue(const Transfer& transfer) override {
    const CopyList copies = copies_of(transfer, table_);
    if (batches_) {
      const cudaError_t error = enqueue_batch(copies);
      batches_ = error != cudaErrorNotSupported && error != cudaErrorCallRequiresNewerDriver;
      if (batches_) return error;
      static_cast<void>(cudaGetLastError());  // not sticky: forget it and take the long way
    }
    for (std::size_t i = 0; i < copies.sizes.size(); ++i) {
      const cudaError_t error = cudaMemcpyAsync(copies.destinations[i], copies.sources[i],
                                                copies.sizes[i], cudaMemcpyDefault, stream_.get());
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

 private:
  // CUDA 12.8 has it, in the runtime and in the driver. STREAM order: with ANY the source may be
  // read before earlier work on the stream, here the wait for the fence, is done.
  [[nodiscard]] cudaError_t enqueue_batch([[maybe_unused]] const CopyList& copies) {
#if CUDART_VERSION >= 12080
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    std::size_t first = 0;
    const std::size_t count = copies.sizes.size();
#if CUDART_VERSION >= 13000
    return cudaMemcpyBatchAsync(copies.destinations.data(), copies.sources.data(),
                                copies.sizes.data(), count, &attributes, &first, 1, stream_.get());
#else
    // This version takes arrays that it does not change as if it did.
    std::size_t failed = 0;
    return cudaMemcpyBatchAsync(const_cast<void**>(copies.destinations.data()),
                                const_cast<void**>(copies.sources.data()),
                                const_cast<std::size_t*>(copies.sizes.data()), count, &attributes,
                                &first, 1, &failed, stream_.get());
#endif
#else
    return cudaErrorNotSupported;
#endif
  }

  const SegmentTable& table_;
  CudaStream stream_;
  bool batches_;  // until the driver turns out not to have them
};

}  // namespace lmkv
