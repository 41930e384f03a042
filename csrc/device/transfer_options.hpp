// How a device moves blocks, and how that is chosen.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace lmkv {

enum class Direction { kGather, kScatter };

enum class TransferMode {
  kAuto,
  kCopyEngine,    // the GPU's copy engines, a copy a fragment: no SM is used
  kKernelStaged,  // a kernel between the paged blocks and a buffer on the device, then one DMA
  kKernelMapped,  // a kernel between the paged blocks and pinned host memory
};
[[nodiscard]] std::string_view name_of(TransferMode mode);

// What a device was measured to be good at, for one direction. The defaults are derived in
// docs/gpu-transfer.md; `lmkv bench transfer --calibrate` measures them.
struct TransferTuning {
  // Fragments (dense runs of a block) of at least so many bytes go by the copy engines.
  std::size_t copy_engine_from = 32 << 10;
  TransferMode below = TransferMode::kKernelStaged;  // kAuto and kCopyEngine make no sense here
};

struct TransferOptions {
  TransferMode mode = TransferMode::kAuto;
  TransferTuning gather;
  TransferTuning scatter;
  unsigned thread_blocks = 8;           // of a kernel: how many SMs it may take
  std::size_t staging_bytes = 8 << 20;  // of one staging buffer; a direction has three

  [[nodiscard]] const TransferTuning& tuning(Direction direction) const {
    return direction == Direction::kGather ? gather : scatter;
  }
};

// What a machine turned out to allow.
struct TransferMeans {
  bool pinned = true;   // the host memory is pinned and mapped
  bool kernels = true;  // the build has code that this GPU runs
  bool staging = true;  // memory for staging buffers was to be had
};

struct TransferChoice {
  TransferMode mode = TransferMode::kCopyEngine;
  std::string reason;  // in words, for the log
};

// `fragment_bytes`: mean bytes of a block's dense runs. What was asked for is done where the means
// allow it, and the next best elsewhere. Never returns kAuto.
[[nodiscard]] TransferChoice choose_transfer(const TransferOptions& options, Direction direction,
                                             std::size_t fragment_bytes, TransferMeans means);

}  // namespace lmkv
