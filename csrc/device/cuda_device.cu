// Paged KV in GPU memory, moved by the copy engines.
//
// A low-priority stream and a thread for each direction: a load does not wait behind a store that
// waits for a forward pass. Ordering against the engine's own stream is by events alone; nothing
// here synchronises that stream, and only the device's own threads ever wait.
#include <cuda_runtime.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "common/background_thread.hpp"
#include "device/device.hpp"

namespace lmkv {
namespace {

// Transfers given to the GPU and not yet waited for: the next one is queued before this one ends.
constexpr std::size_t kTransfersInFlight = 4;

std::string describe(cudaError_t error, const char* what) {
  return std::string(what) + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) +
         ")";
}

Status to_status(cudaError_t error, const char* what) {
  return error == cudaSuccess ? Status::ok() : Status::device(describe(error, what));
}

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(describe(error, what));
}

class Event {
 public:
  explicit Event(unsigned flags) { require(cudaEventCreateWithFlags(&event_, flags), "event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Makes a device current for a scope: the current device is the thread's, and torch's too.
class OnDevice {
 public:
  explicit OnDevice(int ordinal) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = ordinal;
    error_ = cudaSetDevice(ordinal);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { static_cast<void>(cudaSetDevice(before_)); }
  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  cudaError_t error_;
};

class Stream {
 public:
  explicit Stream(int priority) {
    require(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority), "stream");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Whatever went wrong while it was made, every transfer that waits for it fails with.
class CudaFence final : public Fence {
 public:
  CudaFence(int ordinal, cudaStream_t stream) {
    const OnDevice device(ordinal);
    error_ = device.error();
    if (error_ == cudaSuccess) error_ = cudaEventCreateWithFlags(&event_, cudaEventDisableTiming);
    if (error_ == cudaSuccess) error_ = cudaEventRecord(event_, stream);
  }
  ~CudaFence() override {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  [[nodiscard]] cudaError_t wait_on(cudaStream_t stream) const {
    return error_ != cudaSuccess ? error_ : cudaStreamWaitEvent(stream, event_, 0);
  }

 private:
  cudaEvent_t event_ = nullptr;
  cudaError_t error_ = cudaSuccess;
};

// The copies of one transfer, neighbours in both memories merged.
struct CopyList {
  std::vector<void*> destinations;
  std::vector<const void*> sources;
  std::vector<std::size_t> sizes;

  void add(void* destination, const void* source, std::size_t bytes) {
    if (!sizes.empty()) {
      const std::size_t last = sizes.back();
      if (static_cast<char*>(destinations.back()) + last == destination &&
          static_cast<const char*>(sources.back()) + last == source) {
        sizes.back() += bytes;
        return;
      }
    }
    destinations.push_back(destination);
    sources.push_back(source);
    sizes.push_back(bytes);
  }
};

CopyList copies_of(const Transfer& transfer, const SegmentTable& table) {
  CopyList copies;
  std::byte* host = transfer.host;
  for (const BlockId block : transfer.blocks) {
    for (const Segment& segment : table.segments()) {
      auto* const paged = reinterpret_cast<std::byte*>(
          segment.base + static_cast<std::size_t>(block) * segment.block_stride);
      if (transfer.direction == Direction::kGather) {
        copies.add(host, paged, segment.bytes);
      } else {
        copies.add(paged, host, segment.bytes);
      }
      host += segment.bytes;
    }
  }
  return copies;
}

cudaError_t enqueue_one_by_one(const CopyList& copies, cudaStream_t stream) {
  for (std::size_t i = 0; i < copies.sizes.size(); ++i) {
    const cudaError_t error = cudaMemcpyAsync(copies.destinations[i], copies.sources[i],
                                              copies.sizes[i], cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// One call for all copies where runtime and driver have it (CUDA 12.8). STREAM order: with ANY the
// source may be read before earlier work on the stream, here the wait for the fence, is done.
cudaError_t enqueue(CopyList& copies, cudaStream_t stream) {
#if CUDART_VERSION >= 12080
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first = 0;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaMemcpyBatchAsync(
      const_cast<const void**>(copies.destinations.data()), copies.sources.data(),
      copies.sizes.data(), copies.sizes.size(), &attributes, &first, 1, stream);
#else
  std::size_t failed = 0;
  const cudaError_t error = cudaMemcpyBatchAsync(
      copies.destinations.data(), const_cast<void**>(copies.sources.data()), copies.sizes.data(),
      copies.sizes.size(), &attributes, &first, 1, &failed, stream);
#endif
  const bool lacking = error == cudaErrorNotSupported || error == cudaErrorCallRequiresNewerDriver;
  if (!lacking) return error;
  static_cast<void>(cudaGetLastError());  // not sticky: forget it and take the long way
#endif
  return enqueue_one_by_one(copies, stream);
}

// One direction: a queue, a stream and the thread that feeds and watches it.
class Lane {
 public:
  Lane(const SegmentTable& table, int ordinal, int priority)
      : table_(table), ordinal_(ordinal), stream_(priority), thread_([this] { run(); }) {}
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  ~Lane() { stop(); }

  void submit(Transfer transfer) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(transfer));
    }
    wake_.notify_one();
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

 private:
  struct InFlight {
    Transfer transfer;
    Event done{cudaEventDisableTiming | cudaEventBlockingSync};
  };

  void run() {
    become_background_thread("lmkv-copy");
    static_cast<void>(cudaSetDevice(ordinal_));
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
        InFlight& oldest = in_flight.front();
        oldest.transfer.done(to_status(cudaEventSynchronize(oldest.done.get()), "copy"));
        in_flight.pop_front();
        lock.lock();
      } else {
        return;  // stopping, and nothing is left
      }
    }
  }

  void start(Transfer transfer, std::deque<InFlight>& in_flight) {
    try {
      in_flight.emplace_back();
    } catch (const std::runtime_error& error) {  // no event to be had; nothing was queued
      return transfer.done(Status::device(error.what()));
    }
    InFlight& entry = in_flight.back();
    entry.transfer = std::move(transfer);
    cudaError_t error = cudaSuccess;
    if (entry.transfer.after != nullptr) {
      error = static_cast<const CudaFence&>(*entry.transfer.after).wait_on(stream_.get());
    }
    if (error == cudaSuccess) {
      CopyList copies = copies_of(entry.transfer, table_);
      error = enqueue(copies, stream_.get());
    }
    const cudaError_t recorded = cudaEventRecord(entry.done.get(), stream_.get());
    if (error == cudaSuccess) error = recorded;
    if (error == cudaSuccess) return;
    // Some of the copies may be on their way, and nobody may be told before they have ended.
    static_cast<void>(cudaStreamSynchronize(stream_.get()));
    const Transfer failed = std::move(entry.transfer);
    in_flight.pop_back();
    failed.done(to_status(error, "transfer"));
  }

  const SegmentTable& table_;
  const int ordinal_;
  Stream stream_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Transfer> queue_;  // guarded by mutex_, as the next
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of the above
};

class CudaDevice final : public Device {
 public:
  CudaDevice(SegmentTable table, int ordinal) : table_(std::move(table)), ordinal_(ordinal) {
    const OnDevice device(ordinal_);
    require(device.error(), "cudaSetDevice");
    int lowest = 0;
    int highest = 0;
    require(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "stream priorities");
    gathers_ = std::make_unique<Lane>(table_, ordinal_, lowest);
    scatters_ = std::make_unique<Lane>(table_, ordinal_, lowest);
  }

  void stop() override {
    gathers_->stop();
    scatters_->stop();
  }

  [[nodiscard]] std::shared_ptr<const Fence> fence(std::uintptr_t stream) override {
    return std::make_shared<CudaFence>(ordinal_, reinterpret_cast<cudaStream_t>(stream));
  }

  void submit(Transfer transfer) override {
    (transfer.direction == Direction::kScatter ? scatters_ : gathers_)->submit(std::move(transfer));
  }

  [[nodiscard]] std::string pin(std::byte* begin, std::size_t bytes) override {
    const OnDevice device(ordinal_);
    const cudaError_t error = cudaHostRegister(begin, bytes, cudaHostRegisterPortable);
    if (error == cudaSuccess) return {};
    static_cast<void>(cudaGetLastError());
    return describe(error, "cudaHostRegister");
  }

  void unpin(std::byte* begin) override { cudaHostUnregister(begin); }

  [[nodiscard]] std::string name() const override { return "cuda:" + std::to_string(ordinal_); }

 private:
  const SegmentTable table_;
  const int ordinal_;
  std::unique_ptr<Lane> gathers_;  // both use table_
  std::unique_ptr<Lane> scatters_;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(SegmentTable table, int ordinal) {
  return std::make_unique<CudaDevice>(std::move(table), ordinal);
}

CudaStatus cuda_status() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    const bool absent = error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver;
    return {0, absent ? std::string("absent: no usable GPU or driver on this machine (") +
                            cudaGetErrorString(error) + ")"
                      : describe(error, "cudaGetDeviceCount")};
  }
  if (count == 0) return {0, "absent: no GPU on this machine"};
  return {count, ""};
}

}  // namespace lmkv
