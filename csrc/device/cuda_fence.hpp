// Points in the work of the engine's stream.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "device/cuda_objects.hpp"
#include "device/device.hpp"

namespace lmkv {

// Events that are used again and again. A fence ends on any thread, an I/O thread among them, which
// has no business with a GPU: to destroy an event there might make a context on GPU 0. So nothing
// is destroyed before the device itself is.
class EventPool {
 public:
  EventPool() = default;
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool() {
    for (const cudaEvent_t event : free_) static_cast<void>(cudaEventDestroy(event));
  }

  [[nodiscard]] cudaError_t take(cudaEvent_t& event) {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        event = free_.back();
        free_.pop_back();
        return cudaSuccess;
      }
    }
    return cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  }
  void give_back(cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    free_.push_back(event);
  }

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

// Whatever went wrong while it was made, every transfer that waits for it fails with.
class CudaFence final : public Fence {
 public:
  // Engine's thread.
  CudaFence(std::shared_ptr<EventPool> pool, int ordinal, cudaStream_t stream)
      : pool_(std::move(pool)) {
    const OnDevice device(ordinal);
    error_ = device.error();
    if (error_ == cudaSuccess) error_ = pool_->take(event_);
    if (error_ == cudaSuccess) error_ = cudaEventRecord(event_, stream);
    // torch looks for errors of its own on this thread, and must not find ours.
    if (error_ != cudaSuccess) static_cast<void>(cudaGetLastError());
  }
  ~CudaFence() override {
    if (event_ != nullptr) pool_->give_back(event_);
  }

  // Device's threads. Once it has returned, the stream waits even if the event is recorded again.
  [[nodiscard]] cudaError_t wait_on(cudaStream_t stream) const {
    return error_ != cudaSuccess ? error_ : cudaStreamWaitEvent(stream, event_, 0);
  }

 private:
  const std::shared_ptr<EventPool> pool_;
  cudaEvent_t event_ = nullptr;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace lmkv
