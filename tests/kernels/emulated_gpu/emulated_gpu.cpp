#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <thread>
#include <utility>

#include "cuda_runtime.h"

namespace emulated_gpu {
namespace {

struct Fault {
  cudaError_t error;
  int times;
  int after;
};

struct Gpu {
  std::mutex mutex;  // of all below
  std::condition_variable released;
  std::string held;
  std::string thrower;
  std::map<std::string, Fault> faults;
  std::map<void*, std::size_t> allocated;
  std::map<void*, std::size_t> registered;
  std::mt19937 random{1};
  unsigned delay_microseconds = 0;
  std::size_t memory_limit = SIZE_MAX;
  cudaError_t lost = cudaSuccess;
  std::ptrdiff_t host_alias = 0;
  Counts counts;
};

Gpu& gpu() {
  static Gpu the_gpu;
  return the_gpu;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

cudaError_t injected(Gpu& g, const std::string& what) {  // caller holds the mutex
  const auto fault = g.faults.find(what);
  if (fault == g.faults.end()) return cudaSuccess;
  if (fault->second.after > 0) {
    --fault->second.after;
    return cudaSuccess;
  }
  const cudaError_t error = fault->second.error;
  if (--fault->second.times == 0) g.faults.erase(fault);
  return error;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

}  // namespace

// A point in a stream: how often it was recorded, and how many of these were reached.
struct EventState {
  std::mutex mutex;
  std::condition_variable reached_one;
  std::uint64_t recorded = 0;
  std::uint64_t reached = 0;

  void wait_for(std::uint64_t number) {
    std::unique_lock lock(mutex);
    reached_one.wait(lock, [&] { return reached >= number; });
  }
};

// Work that was queued with an event outlives the event.
struct Event {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
  int device = current_device;
};

struct Stream {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable idle;
  std::deque<std::pair<std::string, std::function<void()>>> queue;
  bool busy = false;
  std::string busy_with;
  bool stopping = false;
  int device = current_device;
  std::thread thread;

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return stopping || !queue.empty(); });
      if (queue.empty()) return;
      auto [what, work] = std::move(queue.front());
      queue.pop_front();
      busy = true;
      busy_with = what;
      lock.unlock();
      unsigned delay = 0;
      bool skip = false;
      {
        Gpu& g = gpu();
        std::unique_lock gpu_lock(g.mutex);
        g.released.wait(gpu_lock, [&] { return g.held != what; });
        if (g.delay_microseconds > 0) {
          delay = static_cast<unsigned>(g.random() % (g.delay_microseconds + 1));
        }
        if (const cudaError_t error = injected(g, what); error != cudaSuccess) g.lost = error;
        // On a lost GPU nothing runs any more, but whoever waits for it is let go.
        skip = g.lost != cudaSuccess && what != "event";
        if (what == "kernel" && !skip) ++g.counts.kernels;
        if (what == "copy" && !skip) ++g.counts.copies;
      }
      if (delay > 0 && what != "event") {
        std::this_thread::sleep_for(std::chrono::microseconds(delay));
      }
      if (!skip) work();
      lock.lock();
      busy = false;
      if (queue.empty()) idle.notify_all();
    }
  }
};

cudaError_t enter(const char* function) {
  Gpu& g = gpu();
  const std::lock_guard lock(g.mutex);
  g.counts.contexts.insert(current_device);
  if (g.thrower == function) {
    g.thrower.clear();
    throw std::bad_alloc();
  }
  if (g.lost != cudaSuccess) {
    ++g.counts.calls_after_loss;
    return remember(g.lost);
  }
  return remember(injected(g, function));
}

cudaError_t check_device(cudaStream_t stream) {
  return stream->device == current_device ? cudaSuccess : remember(cudaErrorInvalidResourceHandle);
}

void enqueue(cudaStream_t stream, std::function<void()> work, const char* what) {
  {
    const std::lock_guard lock(stream->mutex);
    stream->queue.emplace_back(what, std::move(work));
  }
  stream->wake.notify_one();
}

void fail(const std::string& what, cudaError_t error, int times, int after) {
  const std::lock_guard lock(gpu().mutex);
  gpu().faults[what] = {error, times, after};
}

void throw_from(const std::string& what) {
  const std::lock_guard lock(gpu().mutex);
  gpu().thrower = what;
}

void hold(const std::string& what) {
  const std::lock_guard lock(gpu().mutex);
  gpu().held = what;
}

void release() {
  {
    const std::lock_guard lock(gpu().mutex);
    gpu().held.clear();
  }
  gpu().released.notify_all();
}

void delay_work(unsigned microseconds) {
  const std::lock_guard lock(gpu().mutex);
  gpu().delay_microseconds = microseconds;
}

void limit_memory(std::size_t bytes) {
  const std::lock_guard lock(gpu().mutex);
  gpu().memory_limit = bytes;
}

void alias_host_memory(std::ptrdiff_t distance) {
  const std::lock_guard lock(gpu().mutex);
  gpu().host_alias = distance;
}

void reset() {
  Gpu& g = gpu();
  const std::lock_guard lock(g.mutex);
  g.faults.clear();
  g.held.clear();
  g.delay_microseconds = 0;
  g.memory_limit = SIZE_MAX;
  g.lost = cudaSuccess;
  g.host_alias = 0;
  g.counts.contexts.clear();
  g.counts.kernels = g.counts.copies = g.counts.batches = g.counts.calls_after_loss = 0;
  last_error = cudaSuccess;
}

Counts counts() {
  Gpu& g = gpu();
  const std::lock_guard lock(g.mutex);
  return g.counts;
}

}  // namespace emulated_gpu

using emulated_gpu::enter;
using emulated_gpu::gpu;
using emulated_gpu::remember;

#define ENTER(function) \
  if (const cudaError_t entered = enter(function); entered != cudaSuccess) return entered

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    default: return error == cudaSuccess ? "cudaSuccess" : "cudaErrorOther";
  }
}
const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
cudaError_t cudaGetLastError() { return std::exchange(emulated_gpu::last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  ENTER("cudaGetDeviceCount");
  *count = 2;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* ordinal) {
  *ordinal = emulated_gpu::current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int ordinal) {
  if (ordinal < 0 || ordinal > 1) return remember(cudaErrorInvalidDevice);
  emulated_gpu::current_device = ordinal;
  const std::lock_guard lock(gpu().mutex);
  gpu().counts.contexts.insert(ordinal);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
  ENTER("cudaDeviceGetPCIBusId");
  if (length < 1) return cudaErrorInvalidValue;
  text[0] = '\0';
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = 0;
  *highest = -5;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  ENTER("cudaEventCreateWithFlags");
  *event = new emulated_gpu::Event;
  const std::lock_guard lock(gpu().mutex);
  ++gpu().counts.events;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  const std::lock_guard lock(gpu().mutex);
  gpu().counts.contexts.insert(emulated_gpu::current_device);
  --gpu().counts.events;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  ENTER("cudaEventRecord");
  if (event->device != stream->device) return remember(cudaErrorInvalidResourceHandle);
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(event->state->mutex);
    number = ++event->state->recorded;
  }
  emulated_gpu::enqueue(
      stream,
      [state = event->state, number] {
        {
          const std::lock_guard lock(state->mutex);
          state->reached = std::max(state->reached, number);
        }
        state->reached_one.notify_all();
      },
      "event");
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  ENTER("cudaEventSynchronize");
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(event->state->mutex);
    number = event->state->recorded;
  }
  event->state->wait_for(number);
  const std::lock_guard lock(gpu().mutex);
  return remember(gpu().lost);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  ENTER("cudaStreamCreateWithPriority");
  auto* const made = new emulated_gpu::Stream;
  made->thread = std::thread([made] { made->run(); });
  *stream = made;
  const std::lock_guard lock(gpu().mutex);
  ++gpu().counts.streams;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    const std::lock_guard lock(stream->mutex);
    // CUDA would not wait for it. (Events may be marked late: whoever waited is on its way.)
    const bool works = stream->busy && stream->busy_with != "event";
    if (works || std::ranges::any_of(stream->queue,
                                     [](const auto& queued) { return queued.first != "event"; })) {
      std::fputs("a stream is destroyed that has work\n", stderr);
      std::abort();
    }
    stream->stopping = true;
  }
  stream->wake.notify_one();
  stream->thread.join();
  delete stream;
  const std::lock_guard lock(gpu().mutex);
  --gpu().counts.streams;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  ENTER("cudaStreamWaitEvent");
  std::uint64_t number = 0;  // what was recorded by now; later records are none of its business
  {
    const std::lock_guard lock(event->state->mutex);
    number = event->state->recorded;
  }
  emulated_gpu::enqueue(
      stream, [state = event->state, number] { state->wait_for(number); }, "event");
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  {
    std::unique_lock lock(stream->mutex);
    stream->idle.wait(lock, [&] { return stream->queue.empty() && !stream->busy; });
  }
  ENTER("cudaStreamSynchronize");
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  ENTER("cudaStreamQuery");
  const std::lock_guard lock(stream->mutex);
  return stream->queue.empty() && !stream->busy ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  ENTER("cudaMalloc");
  auto& g = gpu();
  const std::lock_guard lock(g.mutex);
  if (g.counts.allocated_bytes + bytes > g.memory_limit) return remember(cudaErrorMemoryAllocation);
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return remember(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xAB, bytes);
  g.allocated[*memory] = bytes;
  g.counts.allocated_bytes += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  auto& g = gpu();
  const std::lock_guard lock(g.mutex);
  g.counts.allocated_bytes -= g.allocated.at(memory);
  g.allocated.erase(memory);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  ENTER("cudaMemcpyAsync");
  emulated_gpu::enqueue(stream, [=] { std::memcpy(to, from, bytes); }, "copy");
  return cudaSuccess;
}
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const std::size_t* bytes,
                                 std::size_t count, cudaMemcpyAttributes* attributes, std::size_t*,
                                 std::size_t attribute_count, cudaStream_t stream) {
  ENTER("cudaMemcpyBatchAsync");
  if (count == 0 || attribute_count != 1 ||
      attributes->srcAccessOrder != cudaMemcpySrcAccessOrderStream) {
    return remember(cudaErrorInvalidValue);
  }
  {
    const std::lock_guard lock(gpu().mutex);
    ++gpu().counts.batches;
  }
  for (std::size_t i = 0; i < count; ++i) {
    void* const target = const_cast<void*>(to[i]);
    emulated_gpu::enqueue(
        stream, [target, source = from[i], size = bytes[i]] { std::memcpy(target, source, size); },
        "copy");
  }
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned) {
  ENTER("cudaHostRegister");
  auto& g = gpu();
  const std::lock_guard lock(g.mutex);
  if (!g.registered.emplace(memory, bytes).second) {
    return remember(cudaErrorHostMemoryAlreadyRegistered);
  }
  g.counts.registered_bytes += bytes;
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* memory) {
  auto& g = gpu();
  const std::lock_guard lock(g.mutex);
  const auto found = g.registered.find(memory);
  if (found == g.registered.end()) return remember(cudaErrorInvalidValue);
  g.counts.registered_bytes -= found->second;
  g.registered.erase(found);
  return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  ENTER("cudaHostGetDevicePointer");
  const std::lock_guard lock(gpu().mutex);
  *device = static_cast<std::byte*>(host) + gpu().host_alias;
  return cudaSuccess;
}
