// One direction of a GPU: a queue, a way to copy, and the thread that feeds and watches it.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "common/background_thread.hpp"
#include "device/copy_paths.cuh"
#include "device/cuda_objects.hpp"
#include "device/device.hpp"

namespace lmkv {

// A point in the work of the engine's stream. Whatever went wrong while it was made, every transfer
// that waits for it fails with.
class CudaFence final : public Fence {
 public:
  CudaFence(int ordinal, cudaStream_t stream) {
    const OnDevice device(ordinal);
    error_ = device.error();
    if (error_ == cudaSuccess) error_ = cudaEventCreateWithFlags(&event_, cudaEventDisableTiming);
    if (error_ == cudaSuccess) error_ = cudaEventRecord(event_, stream);
    // This is the engine's thread: torch, which looks for errors of its own, must not find ours.
    if (error_ != cudaSuccess) static_cast<void>(cudaGetLastError());
  }
  ~CudaFence() override {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }
  [[nodiscard]] cudaError_t wait_on(cudaStream_t stream) const {
    return error_ != cudaSuccess ? error_ : cudaStreamWaitEvent(stream, event_, 0);
  }

 private:
  cudaEvent_t event_ = nullptr;
  cudaError_t error_ = cudaSuccess;
};

// Whether the process's context on the GPU still works. Some errors (a kernel's bad access, an
// uncorrectable memory error) end it for good: every later call fails with the same error.
class CudaHealth {
 public:
  [[nodiscard]] std::string failure() const {
    if (!lost_.load(std::memory_order_acquire)) return {};
    const std::lock_guard lock(mutex_);
    return reason_;
  }
  // After `error` on `stream`. Lanes only: an engine's thread never asks the GPU.
  void examine(cudaError_t error, cudaStream_t stream) {
    static_cast<void>(cudaGetLastError());  // an error that is not sticky is forgotten by this
    const cudaError_t now = cudaStreamQuery(stream);
    if (now == cudaSuccess || now == cudaErrorNotReady) return;
    const std::lock_guard lock(mutex_);
    if (reason_.empty()) reason_ = describe(error, "the GPU's context is lost");
    lost_.store(true, std::memory_order_release);
  }

 private:
  std::atomic<bool> lost_{false};
  mutable std::mutex mutex_;
  std::string reason_;  // guarded by mutex_
};

class CudaLane {
 public:
  CudaLane(int ordinal, std::unique_ptr<CopyPath> path, CudaHealth& health)
      : ordinal_(ordinal), path_(std::move(path)), health_(health), thread_([this] { run(); }) {}
  CudaLane(const CudaLane&) = delete;
  CudaLane& operator=(const CudaLane&) = delete;
  ~CudaLane() { stop(); }

  // Any thread; returns at once.
  void submit(Transfer transfer) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(transfer));
    }
    wake_.notify_one();
  }

  // Finishes what was submitted. Idempotent.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

 private:
  // Transfers given to the GPU and not yet waited for: the next is queued before this one ends.
  static constexpr std::size_t kTransfersInFlight = 4;

  struct InFlight {
    Transfer transfer;
    CudaEvent done{cudaEventDisableTiming | cudaEventBlockingSync};
  };

  void run() {
    become_background_thread("lmkv-copy");
    static_cast<void>(cudaSetDevice(ordinal_));
    // Another thread may be capturing a graph: what is done here is none of its business.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
    std::deque<InFlight> in_flight;
    std::unique_lock lock(mutex_);
    for (;;) {
      if (in_flight.empty()) wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (!queue_.empty() && in_flight.size() < kTransfersInFlight) {
        Transfer transfer = std::move(queue_.front());
        queue_.pop_front();
        lock.unlock();
        start(std::move(transfer), in_flight);
        lock.lock();
      } else if (!in_flight.empty()) {
        lock.unlock();
        finish(in_flight);
        lock.lock();
      } else {
        return;  // stopping, and nothing is left
      }
    }
  }

  void start(Transfer transfer, std::deque<InFlight>& in_flight) {
    if (const std::string lost = health_.failure(); !lost.empty()) {
      return transfer.done(Status::device(lost));
    }
    try {
      in_flight.emplace_back();
    } catch (const std::runtime_error& error) {  // no event to be had; nothing was queued
      return transfer.done(Status::device(error.what()));
    }
    InFlight& entry = in_flight.back();
    entry.transfer = std::move(transfer);
    cudaError_t error = cudaSuccess;
    if (entry.transfer.after != nullptr) {
      const auto& fence = static_cast<const CudaFence&>(*entry.transfer.after);
      error = fence.wait_on(path_->paged_stream());
    }
    if (error == cudaSuccess) error = path_->enqueue(entry.transfer);
    const cudaError_t recorded = cudaEventRecord(entry.done.get(), path_->last_stream());
    if (error == cudaSuccess) error = recorded;
    if (error == cudaSuccess) return;
    // Some of the work may be on its way, and nobody may be told before that has ended.
    static_cast<void>(cudaStreamSynchronize(path_->paged_stream()));
    static_cast<void>(cudaStreamSynchronize(path_->last_stream()));
    const Transfer failed = std::move(entry.transfer);
    in_flight.pop_back();
    report(failed, error);
  }

  void finish(std::deque<InFlight>& in_flight) {
    InFlight& oldest = in_flight.front();
    const cudaError_t error = cudaEventSynchronize(oldest.done.get());
    const Transfer transfer = std::move(oldest.transfer);
    in_flight.pop_front();
    report(transfer, error);
  }

  void report(const Transfer& transfer, cudaError_t error) {
    if (error != cudaSuccess) health_.examine(error, path_->last_stream());
    transfer.done(to_status(error, "transfer"));
  }

  const int ordinal_;
  const std::unique_ptr<CopyPath> path_;
  CudaHealth& health_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Transfer> queue_;  // guarded by mutex_, as the next
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace lmkv
