// A device and pinned host memory, without files: what gather and scatter take by themselves.
#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/types.hpp"
#include "device/device.hpp"
#include "engine/slab_pool.hpp"

namespace lmkv {

// One thread at a time.
class TransferBench {
 public:
  // Over a paged cache of these segments, with `host_bytes` of memory as slabs are made of. Throws
  // std::invalid_argument and DeviceError as make_device does, std::bad_alloc.
  TransferBench(const std::string& device, const std::vector<Segment>& segments,
                const TransferOptions& options, std::size_t host_bytes);
  TransferBench(const TransferBench&) = delete;
  TransferBench& operator=(const TransferBench&) = delete;
  ~TransferBench();

  [[nodiscard]] std::span<std::byte> host() const { return slab_->bytes(); }

  // Submits all transfers, each of so many blocks, at once; they lie one behind the other in the
  // host memory. Behind what `stream` has been given. Returns the time from before the first
  // submission to the last callback. Blocks until then. Throws std::invalid_argument for more bytes
  // than there are, std::runtime_error for a transfer that fails.
  std::chrono::duration<double> run(Direction direction,
                                    const std::vector<std::vector<BlockId>>& transfers,
                                    std::uintptr_t stream);

  [[nodiscard]] std::map<std::string, std::string> info() const;

 private:
  std::size_t block_bytes_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<SlabPool> pool_;
  std::optional<Slab> slab_;
};

}  // namespace lmkv
