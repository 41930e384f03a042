// One direction of a GPU: a queue, a way to copy, and the threads that feed and watch it.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "common/background_thread.hpp"
#include "device/copy_path.hpp"
#include "device/cuda_fence.hpp"
#include "device/cuda_health.hpp"
#include "device/cuda_objects.hpp"
#include "device/device.hpp"

namespace lmkv {

// One thread gives transfers to the GPU as they come, another waits for them in order and calls
// back: what is submitted while one is waited for starts at once.
class CudaLane {
 public:
  CudaLane(int ordinal, std::unique_ptr<CopyPath> path, CudaHealth& health)
      : ordinal_(ordinal),
        path_(std::move(path)),
        health_(health),
        starter_([this] { start_transfers(); }),
        finisher_([this] { finish_transfers(); }) {}
  CudaLane(const CudaLane&) = delete;
  CudaLane& operator=(const CudaLane&) = delete;
  ~CudaLane() { stop(); }

  // Any thread; returns at once.
  void submit(Transfer transfer) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(transfer));
    }
    wake_.notify_all();
  }

  // Finishes what was submitted, however long the fences take that it waits for. Idempotent.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (starter_.joinable()) starter_.join();
    if (finisher_.joinable()) finisher_.join();
  }

 private:
  // Given to the GPU and not yet waited for: enough that it always has a next one.
  static constexpr std::size_t kTransfersInFlight = 4;

  struct InFlight {
    Transfer transfer;
    const CudaEvent* done;
    Status started;  // one that was not is reported in its turn
  };

  void become_thread(const char* name) const {
    become_background_thread(name);
    static_cast<void>(cudaSetDevice(ordinal_));
    // Another thread may be capturing a graph: what is done here is none of its business.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
  }

  void start_transfers() {
    become_thread("lmkv-copy");
    std::size_t next_event = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock,
                 [this] { return queue_.empty() ? stopping_ : unfinished_ < kTransfersInFlight; });
      if (queue_.empty()) break;
      Transfer transfer = std::move(queue_.front());
      queue_.pop_front();
      ++unfinished_;
      lock.unlock();
      const CudaEvent& done = events_[next_event++ % kTransfersInFlight];
      Status started = start(transfer, done);
      InFlight entry{std::move(transfer), &done, std::move(started)};
      lock.lock();
      in_flight_.push_back(std::move(entry));
      wake_.notify_all();
    }
    all_started_ = true;
    wake_.notify_all();
  }

  // On failure, nothing of it runs any more.
  [[nodiscard]] Status start(const Transfer& transfer, const CudaEvent& done) {
    if (std::string lost = health_.failure(); !lost.empty()) return Status::device(std::move(lost));
    cudaError_t error = cudaSuccess;
    std::string exception;
    try {
      if (transfer.after != nullptr) {
        const auto& fence = static_cast<const CudaFence&>(*transfer.after);
        error = fence.wait_on(path_->paged_stream());
      }
      if (error == cudaSuccess) error = path_->enqueue(transfer);
      if (error == cudaSuccess) error = cudaEventRecord(done.get(), path_->last_stream());
    } catch (const std::exception& thrown) {  // out of memory
      exception = thrown.what();
    }
    if (error == cudaSuccess && exception.empty()) return Status::ok();
    path_->drain();
    if (!exception.empty()) return Status::device(std::move(exception));
    health_.examine(path_->last_stream());
    return to_status(error, "transfer");
  }

  void finish_transfers() {
    become_thread("lmkv-copied");
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return all_started_ || !in_flight_.empty(); });
      if (in_flight_.empty()) return;
      const InFlight entry = std::move(in_flight_.front());
      in_flight_.pop_front();
      lock.unlock();
      finish(entry);
      lock.lock();
    }
  }

  void finish(const InFlight& entry) {
    Status outcome = outcome_of(entry);
    {  // the event and its place are free; the callback may take its time
      const std::lock_guard lock(mutex_);
      --unfinished_;
    }
    wake_.notify_all();
    entry.transfer.done(std::move(outcome));
  }

  [[nodiscard]] Status outcome_of(const InFlight& entry) {
    if (!entry.started.is_ok()) return entry.started;
    const cudaError_t error = cudaEventSynchronize(entry.done->get());
    if (error != cudaSuccess) health_.examine(path_->last_stream());
    return to_status(error, "transfer");
  }

  const int ordinal_;
  const std::unique_ptr<CopyPath> path_;  // the starter's, but for its streams
  CudaHealth& health_;
  struct BlockingEvent : CudaEvent {
    BlockingEvent() : CudaEvent(cudaEventDisableTiming | cudaEventBlockingSync) {}
  };
  std::array<BlockingEvent, kTransfersInFlight> events_;  // used in turn

  std::mutex mutex_;  // of all up to the blank line
  std::condition_variable wake_;
  std::deque<Transfer> queue_;
  std::deque<InFlight> in_flight_;
  std::size_t unfinished_ = 0;  // started, or about to be, and not waited for yet
  bool stopping_ = false;
  bool all_started_ = false;

  std::thread starter_;  // last: they use all of the above
  std::thread finisher_;
};

}  // namespace lmkv
