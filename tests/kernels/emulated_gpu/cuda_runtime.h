// The part of the CUDA runtime that lmkv's GPU device uses, done by the host.
//
// It takes the place of NVIDIA's header when csrc/device/*.cu and *.cuh are compiled by the host's
// compiler. Streams are queues with a thread each, events are points in them, a kernel is a loop
// over its threads. Nothing but events orders one stream against another, and every piece of work
// may be delayed, so that ordering which is missing shows. There are two devices; every thread
// begins at the first, as with CUDA, and the second is the one to be used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <string>

#ifndef CUDART_VERSION  // other versions are compiled too, to see that they can be
#define CUDART_VERSION 13000
#endif

// ---- The dialect

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}  // NOLINT
};
inline thread_local uint3 threadIdx;
inline thread_local uint3 blockIdx;
inline thread_local dim3 blockDim;
inline thread_local dim3 gridDim;

// A GPU stops at an address that is no multiple of the word; the host would not.
inline void check_alignment(const void* address, std::size_t word) {
  if (reinterpret_cast<std::uintptr_t>(address) % word != 0) {
    std::fputs("misaligned address\n", stderr);
    std::abort();
  }
}
template <typename T>
T __ldcs(const T* from) {
  check_alignment(from, sizeof(T));
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  check_alignment(to, sizeof(T));
  *to = value;
}

// ---- The runtime. Values are those of NVIDIA's.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorCallRequiresNewerDriver = 36,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorHostMemoryAlreadyRegistered = 712,
  cudaErrorNotSupported = 801,
};

namespace emulated_gpu {
struct Stream;
struct Event;
}  // namespace emulated_gpu
using cudaStream_t = emulated_gpu::Stream*;
using cudaEvent_t = emulated_gpu::Event*;

enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum cudaMemcpySrcAccessOrder { cudaMemcpySrcAccessOrderStream = 1 };
struct cudaMemcpyAttributes {
  cudaMemcpySrcAccessOrder srcAccessOrder;
  unsigned flags;
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };

inline constexpr unsigned cudaEventBlockingSync = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaHostRegisterPortable = 1;
inline constexpr unsigned cudaHostRegisterMapped = 2;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* ordinal);
cudaError_t cudaSetDevice(int ordinal);
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int ordinal);
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);  // finishes what is queued
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);

cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
#if CUDART_VERSION >= 13000
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const std::size_t* bytes,
                                 std::size_t count, cudaMemcpyAttributes* attributes,
                                 std::size_t* first, std::size_t attribute_count,
                                 cudaStream_t stream);
#elif CUDART_VERSION >= 12080
cudaError_t cudaMemcpyBatchAsync(void** to, void** from, std::size_t* bytes, std::size_t count,
                                 cudaMemcpyAttributes* attributes, std::size_t* first,
                                 std::size_t attribute_count, std::size_t* failed,
                                 cudaStream_t stream);
#endif
cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* memory);
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags);

namespace emulated_gpu {

// Queues work of one's own, as a forward pass would be.
void enqueue(cudaStream_t stream, std::function<void()> work, const char* what = "work");

// The call of this name fails the next `times` times. For "kernel" and "copy", the names of work on
// a stream, the work fails when it is its turn; an error of work is sticky, as on a GPU.
// The first `after` times it succeeds still.
void fail(const std::string& what, cudaError_t error, int times = 1, int after = 0);
// The call of this name throws std::bad_alloc once: what its caller does beside it may.
void throw_from(const std::string& what);
// Work of this name does not begin until release().
void hold(const std::string& what);
void release();
// Every piece of work on a stream begins up to so much later, at random.
void delay_work(unsigned microseconds);
void limit_memory(std::size_t bytes);  // of cudaMalloc, together
// Back to how the process began; no stream may have work.
void reset();
// Registered host memory has an address of its own on the GPU, so much further on (and cannot be
// reached there: for what never gets so far as to run).
void alias_host_memory(std::ptrdiff_t distance);

struct Counts {
  unsigned kernels = 0, copies = 0, batches = 0;
  std::size_t registered_bytes = 0, allocated_bytes = 0;
  unsigned streams = 0, events = 0;  // that exist
  unsigned calls_after_loss = 0;     // of any of the functions above, but destructors
  std::set<int> contexts;            // devices that have one: a GPU's memory is taken by each
};
Counts counts();

}  // namespace emulated_gpu

struct cudaFuncAttributes {
  int numRegs;
};
template <typename Parameter>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameter));

// `arguments` are copied when it is called, as CUDA does.
template <typename Parameter>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameter), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared_bytes, cudaStream_t stream);

#include "emulated_launch.h"
