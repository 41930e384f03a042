// Paged KV in GPU memory, moved by the copy engines.
//
// One low-priority stream a direction, so that copies never wait behind compute nor behind each
// other; ordering against the engine's own stream by events alone. Nothing here synchronises that
// stream, and only the device's own thread ever waits.
#include <cuda_runtime.h>
#include <pthread.h>

#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

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

// When recording failed, every transfer that waits for the fence fails with the same error.
class CudaFence final : public Fence {
 public:
  explicit CudaFence(cudaStream_t stream)
      : event_(cudaEventDisableTiming), error_(cudaEventRecord(event_.get(), stream)) {}
  [[nodiscard]] cudaError_t wait_on(cudaStream_t stream) const {
    return error_ != cudaSuccess ? error_ : cudaStreamWaitEvent(stream, event_.get(), 0);
  }

 private:
  Event event_;
  cudaError_t error_;
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

class CudaDevice final : public Device {
 public:
  CudaDevice(SegmentTable table, int ordinal) : table_(std::move(table)), ordinal_(ordinal) {
    require(cudaSetDevice(ordinal_), "cudaSetDevice");
    int lowest = 0;
    int highest = 0;
    require(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "stream priorities");
    for (cudaStream_t& stream : streams_) {
      require(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, lowest), "stream");
    }
    thread_ = std::thread([this] { run(); });
  }

  ~CudaDevice() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
    for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  }

  // This runtime's current device is the thread's own, apart from torch's.
  [[nodiscard]] std::shared_ptr<const Fence> fence(std::uintptr_t stream) override {
    require(cudaSetDevice(ordinal_), "cudaSetDevice");
    return std::make_shared<CudaFence>(reinterpret_cast<cudaStream_t>(stream));
  }

  void submit(Transfer transfer) override {
    {
      const std::lock_guard lock(mutex_);
      (transfer.direction == Direction::kScatter ? scatters_ : gathers_)
          .push_back(std::move(transfer));
    }
    wake_.notify_one();
  }

  [[nodiscard]] std::string pin(std::byte* begin, std::size_t bytes) override {
    static_cast<void>(cudaSetDevice(ordinal_));
    const cudaError_t error = cudaHostRegister(begin, bytes, cudaHostRegisterPortable);
    if (error == cudaSuccess) return {};
    static_cast<void>(cudaGetLastError());
    return describe(error, "cudaHostRegister");
  }

  void unpin(std::byte* begin) override { cudaHostUnregister(begin); }

  [[nodiscard]] std::string name() const override { return "cuda:" + std::to_string(ordinal_); }

 private:
  struct InFlight {
    Transfer transfer;
    Event done{cudaEventDisableTiming | cudaEventBlockingSync};
  };

  void run() {
    ::pthread_setname_np(::pthread_self(), "lmkv-copy");
    static_cast<void>(cudaSetDevice(ordinal_));
    std::deque<InFlight> in_flight;
    std::unique_lock lock(mutex_);
    for (;;) {
      if (in_flight.empty()) {
        wake_.wait(lock, [this] { return stopping_ || !scatters_.empty() || !gathers_.empty(); });
      }
      std::deque<Transfer>& queue = scatters_.empty() ? gathers_ : scatters_;
      if (!queue.empty() && in_flight.size() < kTransfersInFlight) {
        Transfer transfer = std::move(queue.front());
        queue.pop_front();
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
    const cudaStream_t stream = streams_[transfer.direction == Direction::kScatter ? 1 : 0];
    try {
      InFlight& entry = in_flight.emplace_back();
      entry.transfer = std::move(transfer);
      cudaError_t error = cudaSuccess;
      if (entry.transfer.after != nullptr) {
        error = static_cast<const CudaFence&>(*entry.transfer.after).wait_on(stream);
      }
      if (error == cudaSuccess) {
        CopyList copies = copies_of(entry.transfer, table_);
        error = enqueue(copies, stream);
      }
      // Also after an error: some copies may be on their way, and nobody may be told before.
      const cudaError_t recorded = cudaEventRecord(entry.done.get(), stream);
      if (error == cudaSuccess) error = recorded;
      if (error == cudaSuccess) return;
      static_cast<void>(cudaStreamSynchronize(stream));
      const Transfer failed = std::move(entry.transfer);
      in_flight.pop_back();
      failed.done(to_status(error, "transfer"));
    } catch (const std::runtime_error& error) {  // no event to be had; nothing was queued
      transfer.done(Status::device(error.what()));
    }
  }

  const SegmentTable table_;
  const int ordinal_;
  std::array<cudaStream_t, 2> streams_{};  // gathers, scatters
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Transfer> scatters_;  // guarded by mutex_, as the two below
  std::deque<Transfer> gathers_;
  bool stopping_ = false;
  std::thread thread_;
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
