// The seam to the memory that holds the paged KV cache.
//
// A device owns queues of transfers and the threads that run their callbacks: to the engine, the
// host's memory behaves as a GPU's does. Two implementations: HostDevice (memcpy, for engines that
// run on the CPU) and CudaDevice (cuda_device.cu, built where nvcc is found).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/status.hpp"
#include "common/types.hpp"
#include "device/segment_table.hpp"
#include "device/transfer_options.hpp"

namespace lmkv {

// A device that cannot be used: its work, and nothing else, cannot be done.
class DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A point in the engine's own work (a CUDA event on its compute stream).
class Fence {
 public:
  Fence() = default;
  Fence(const Fence&) = delete;
  Fence& operator=(const Fence&) = delete;
  virtual ~Fence() = default;
};

// Moves `blocks`, in order, to or from the contiguous `host` bytes: blocks.size() * block_bytes.
struct Transfer {
  Direction direction = Direction::kGather;
  std::vector<BlockId> blocks;
  std::byte* host = nullptr;
  // The transfer starts only after this point. A gather must not overtake the forward pass that
  // writes the blocks, a scatter not one that still reads what the blocks held before.
  std::shared_ptr<const Fence> after;
  // Runs on a thread of the device's when the bytes are where they belong, or the transfer failed.
  std::function<void(Status)> done;
};

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  // Called once, before the first transfer and after all memory is pinned that will be: how to copy
  // depends on it. Throws DeviceError.
  virtual void start() = 0;
  // Finishes every transfer that was submitted, callbacks included, however long the fences take
  // that they wait for; nothing may be submitted after it. Idempotent; also without start().
  virtual void stop() = 0;

  // The point that work queued on `stream` so far will reach. Engine's thread; never blocks and
  // never throws: a fence that could not be made fails the transfers that wait for it.
  [[nodiscard]] virtual std::shared_ptr<const Fence> fence(std::uintptr_t stream) = 0;

  // Any thread; never blocks. A scatter does not wait for gathers that have not begun.
  virtual void submit(Transfer transfer) = 0;

  // Has pages of this range, that are not there yet, be near to it. A hint.
  virtual void place(std::byte* /*begin*/, std::size_t /*bytes*/) {}

  // Makes host memory fast to transfer from and to (pins it). Returns what went wrong, or "";
  // transfers work either way. Undone by `unpin`.
  [[nodiscard]] virtual std::string pin(std::byte* begin, std::size_t bytes) = 0;
  virtual void unpin(std::byte* begin) = 0;
  // Whether pin() needs all of the memory to be there.
  [[nodiscard]] virtual bool pins_memory() const { return false; }
  // The NUMA node that it is near to; -1 where that is not known or all are as near.
  [[nodiscard]] virtual int numa_node() const { return -1; }

  // Why the device is lost for good, or "". From then on every transfer fails with these words, so
  // none need be submitted. Any thread; never blocks.
  [[nodiscard]] virtual std::string failure() const = 0;

  // "device": what it is; "gather" and "scatter": how each is done; "..._reason": why. For people.
  // After start().
  [[nodiscard]] virtual std::map<std::string, std::string> info() const = 0;
};

std::unique_ptr<Device> make_host_device(SegmentTable table);

// Throws DeviceError when there is no such GPU, or this build has no CUDA.
std::unique_ptr<Device> make_cuda_device(SegmentTable table, int ordinal,
                                         const TransferOptions& options);

struct CudaStatus {
  int device_count = 0;
  std::string reason;  // why the count is 0
};
[[nodiscard]] CudaStatus cuda_status();

// "host" or "cuda:<n>". Throws std::invalid_argument for anything else.
std::unique_ptr<Device> make_device(const std::string& name, SegmentTable table,
                                    const TransferOptions& options);

}  // namespace lmkv
