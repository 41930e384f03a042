// One way in which bytes go between paged blocks on a GPU and the host, in one direction.
#pragma once

#include <cuda_runtime.h>

#include "device/device.hpp"

namespace lmkv {

// Queues transfers on streams of its own; `enqueue` waits for nothing. Used by one thread at a
// time.
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
  // Waits until nothing that was queued runs any more, on any stream.
  virtual void drain() = 0;
};

}  // namespace lmkv
