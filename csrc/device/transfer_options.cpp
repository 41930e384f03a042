#include "device/transfer_options.hpp"

namespace lmkv {
namespace {

std::string kib(std::size_t bytes) {
  return bytes % 1024 == 0 ? std::to_string(bytes / 1024) + " KiB" : std::to_string(bytes) + " B";
}

TransferChoice wanted(const TransferOptions& options, Direction direction,
                      std::size_t fragment_bytes) {
  if (options.mode != TransferMode::kAuto) return {options.mode, "asked for"};
  const TransferTuning& tuning = options.tuning(direction);
  const bool large = fragment_bytes >= tuning.copy_engine_from;
  return {large ? TransferMode::kCopyEngine : tuning.below, kib(fragment_bytes) + " fragments"};
}

}  // namespace

std::string_view name_of(TransferMode mode) {
  switch (mode) {
    case TransferMode::kAuto: return "auto";
    case TransferMode::kCopyEngine: return "copy_engine";
    case TransferMode::kKernelStaged: return "kernel_staged";
    case TransferMode::kKernelMapped: return "kernel_mapped";
  }
  return "unknown";
}

TransferChoice choose_transfer(const TransferOptions& options, Direction direction,
                               std::size_t fragment_bytes, TransferMeans means) {
  TransferChoice choice = wanted(options, direction, fragment_bytes);
  if (choice.mode != TransferMode::kCopyEngine && !means.kernels) {
    choice = {TransferMode::kCopyEngine, "this build has no kernels for this GPU"};
  } else if (choice.mode == TransferMode::kKernelMapped && !means.pinned) {
    choice = {means.staging ? TransferMode::kKernelStaged : TransferMode::kCopyEngine,
              "a kernel cannot reach host memory that is not pinned"};
  } else if (choice.mode == TransferMode::kKernelStaged && !means.staging) {
    choice = {means.pinned ? TransferMode::kKernelMapped : TransferMode::kCopyEngine,
              "no GPU memory is left for staging buffers"};
  }
  return choice;
}

}  // namespace lmkv
