// Paged KV in GPU memory.
//
// Streams and threads for each direction: a load does not wait behind a store that waits for a
// forward pass. Ordering against the engine's own stream is by events alone; nothing here
// synchronises that stream, and only the device's own threads ever wait.
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "device/block_kernel.cuh"
#include "device/copy_engine_path.hpp"
#include "device/cuda_fence.hpp"
#include "device/cuda_health.hpp"
#include "device/cuda_lane.hpp"
#include "device/cuda_objects.hpp"
#include "device/device.hpp"
#include "device/kernel_paths.cuh"
#include "device/numa.hpp"

namespace lmkv {
namespace {

class CudaDevice final : public Device {
 public:
  CudaDevice(SegmentTable table, int ordinal, const TransferOptions& options)
      : table_(std::move(table)), ordinal_(ordinal), options_(options) {
    const OnDevice device(ordinal_);
    require(device.error(), "cudaSetDevice");
    int highest = 0;
    require(cudaDeviceGetStreamPriorityRange(&priority_, &highest), "stream priorities");
  }

  ~CudaDevice() override {
    CudaDevice::stop();
    const OnDevice device(ordinal_);  // for what the members still have on it
    gathers_.reset();
    scatters_.reset();
    fences_.reset();
  }

  void start() override {
    const OnDevice device(ordinal_);
    require(device.error(), "cudaSetDevice");
    means_.kernels = BlockKernel::runs_here();
    gathers_ = make_lane(Direction::kGather, gather_choice_);
    scatters_ = make_lane(Direction::kScatter, scatter_choice_);
  }

  void stop() override {
    if (gathers_ != nullptr) gathers_->stop();
    if (scatters_ != nullptr) scatters_->stop();
  }

  [[nodiscard]] std::shared_ptr<const Fence> fence(std::uintptr_t stream) override {
    if (!health_.failure().empty()) return nullptr;  // no transfer will be started
    return std::make_shared<CudaFence>(fences_, ordinal_, reinterpret_cast<cudaStream_t>(stream));
  }

  void submit(Transfer transfer) override {
    (transfer.direction == Direction::kScatter ? scatters_ : gathers_)->submit(std::move(transfer));
  }

  void place(std::byte* begin, std::size_t bytes) override {
    const int node = numa_node();
    if (prefer_numa_node(begin, bytes, node)) numa_ = "node " + std::to_string(node);
  }

  [[nodiscard]] std::string pin(std::byte* begin, std::size_t bytes) override {
    const OnDevice device(ordinal_);
    cudaError_t error = device.error();
    if (error == cudaSuccess) {
      error = cudaHostRegister(begin, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    }
    if (error == cudaSuccess) {
      void* mapped = nullptr;
      error = cudaHostGetDevicePointer(&mapped, begin, 0);
      if (error == cudaSuccess) {
        host_to_device_ = static_cast<std::byte*>(mapped) - begin;
        means_.pinned = true;
        return {};
      }
      static_cast<void>(cudaHostUnregister(begin));
    }
    static_cast<void>(cudaGetLastError());
    return describe(error, "cudaHostRegister");
  }

  void unpin(std::byte* begin) override {
    const OnDevice device(ordinal_);
    if (cudaHostUnregister(begin) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }

  [[nodiscard]] bool pins_memory() const override { return true; }
  [[nodiscard]] int numa_node() const override {
    const OnDevice device(ordinal_);
    return find_numa_node();
  }

  [[nodiscard]] std::string failure() const override { return health_.failure(); }

  [[nodiscard]] std::map<std::string, std::string> info() const override {
    return {{"device", "cuda:" + std::to_string(ordinal_)},
            {"gather", std::string(name_of(gather_choice_.mode))},
            {"gather_reason", gather_choice_.reason},
            {"scatter", std::string(name_of(scatter_choice_.mode))},
            {"scatter_reason", scatter_choice_.reason},
            {"numa", numa_}};
  }

 private:
  std::unique_ptr<CudaLane> make_lane(Direction direction, TransferChoice& choice) {
    const std::size_t fragment = table_.block_bytes() / table_.segments().size();
    choice = choose_transfer(options_, direction, fragment, means_);
    std::unique_ptr<CopyPath> path;
    try {
      path = make_path(direction, choice.mode);
    } catch (const DeviceError&) {  // the KV cache may have taken all of the GPU's memory
      if (choice.mode != TransferMode::kKernelStaged) throw;
      TransferMeans means = means_;
      means.staging = false;
      choice = choose_transfer(options_, direction, fragment, means);
      path = make_path(direction, choice.mode);
    }
    return std::make_unique<CudaLane>(ordinal_, std::move(path), health_);
  }

  std::unique_ptr<CopyPath> make_path(Direction direction, TransferMode mode) {
    switch (mode) {
      case TransferMode::kKernelStaged:
        return std::make_unique<StagedKernelPath>(table_, direction, options_.thread_blocks,
                                                  options_.staging_bytes, priority_);
      case TransferMode::kKernelMapped:
        return std::make_unique<MappedKernelPath>(table_, options_.thread_blocks, priority_,
                                                  host_to_device_);
      case TransferMode::kAuto:
      case TransferMode::kCopyEngine: break;
    }
    const bool batches = means_.pinned && host_to_device_ == 0;
    return std::make_unique<CopyEnginePath>(table_, priority_, batches);
  }

  // -1 where it is not known.
  [[nodiscard]] int find_numa_node() const {
    char bus_id[32] = {};
    if (cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, ordinal_) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return -1;
    }
    return numa_node_of_pci_device(bus_id);
  }

  const SegmentTable table_;
  const int ordinal_;
  const TransferOptions options_;
  int priority_ = 0;
  TransferMeans means_{.pinned = false};
  std::ptrdiff_t host_to_device_ = 0;
  std::string numa_ = "not set";
  TransferChoice gather_choice_;
  TransferChoice scatter_choice_;
  CudaHealth health_;
  std::shared_ptr<EventPool> fences_ = std::make_shared<EventPool>();
  std::unique_ptr<CudaLane> gathers_;  // both use all of the above
  std::unique_ptr<CudaLane> scatters_;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(SegmentTable table, int ordinal,
                                         const TransferOptions& options) {
  return std::make_unique<CudaDevice>(std::move(table), ordinal, options);
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
