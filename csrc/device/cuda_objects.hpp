// CUDA's streams, events and device memory as C++ objects, and its errors as Status.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "common/status.hpp"
#include "device/device.hpp"

namespace lmkv {

[[nodiscard]] inline std::string describe(cudaError_t error, const char* what) {
  return std::string(what) + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) +
         ")";
}

[[nodiscard]] inline Status to_status(cudaError_t error, const char* what) {
  return error == cudaSuccess ? Status::ok() : Status::device(describe(error, what));
}

// For what is made at start; throws DeviceError. An error that is not sticky would be
// reported again by the next call of this thread, which may be torch's: it is taken back.
inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw DeviceError(describe(error, what));
}

// Makes a device current for a scope: the current device is the thread's, and torch's too. Where it
// is current already nothing is called: cudaSetDevice makes a context (since CUDA 12), and to set
// back a device that the thread never used would make one there. So this is for threads that use
// the device anyway.
class OnDevice {
 public:
  explicit OnDevice(int ordinal)
      : error_(cudaGetDevice(&before_)), changed_(error_ == cudaSuccess && before_ != ordinal) {
    if (changed_) error_ = cudaSetDevice(ordinal);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  int before_ = -1;
  cudaError_t error_;
  bool changed_;
};

class CudaEvent {
 public:
  explicit CudaEvent(unsigned flags = cudaEventDisableTiming) {
    require(cudaEventCreateWithFlags(&event_, flags), "cudaEventCreate");
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() { static_cast<void>(cudaEventDestroy(event_)); }
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Does not wait for the legacy default stream, nor that for it.
class CudaStream {
 public:
  explicit CudaStream(int priority) {
    require(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority),
            "cudaStreamCreate");
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) { require(cudaMalloc(&memory_, bytes), "cudaMalloc"); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { static_cast<void>(cudaFree(memory_)); }
  [[nodiscard]] std::byte* get() const { return static_cast<std::byte*>(memory_); }

 private:
  void* memory_ = nullptr;
};

}  // namespace lmkv
