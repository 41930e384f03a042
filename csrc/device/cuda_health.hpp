// Whether the process's context on the GPU still works.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <mutex>
#include <string>

#include "device/cuda_objects.hpp"

namespace lmkv {

// Some errors (a kernel's bad access, an uncorrectable memory error), of whomever's work, end the
// context for good: every later call fails with the same error. Thread-safe.
class CudaHealth {
 public:
  // Why it is lost, or "". Never asks the GPU.
  [[nodiscard]] std::string failure() const {
    if (!lost_.load(std::memory_order_acquire)) return {};
    const std::lock_guard lock(mutex_);
    return reason_;
  }
  // After an error: finds out whether it was the end. Device's threads only.
  void examine(cudaStream_t stream) {
    static_cast<void>(cudaGetLastError());  // an error that is not sticky is forgotten by this
    const cudaError_t now = cudaStreamQuery(stream);
    if (now == cudaSuccess || now == cudaErrorNotReady) return;
    const std::lock_guard lock(mutex_);
    if (reason_.empty()) reason_ = describe(now, "the GPU's context is lost");
    lost_.store(true, std::memory_order_release);
  }

 private:
  std::atomic<bool> lost_{false};
  mutable std::mutex mutex_;
  std::string reason_;  // guarded by mutex_
};

}  // namespace lmkv
