// Which faults an I/O engine is to have: a value, and the text that it is written as.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/io_engine.hpp"

namespace lmkv {

enum class FaultKind : std::uint8_t {
  kEio,     // an errno each, up to the blank line: the operation fails and is not executed
  kEnospc,  // (but for a close, which lets go of the descriptor in any case)
  kEdquot,
  kEstale,
  kErofs,
  kEagain,
  kEintr,

  kLost,     // it is executed, the answer is lost, and what a server then says to the same request
             // is reported: EEXIST of what it has made, ENOENT of what it has renamed or removed
  kLostEio,  // it is executed, the answer is lost, and the client gives up: EIO

  kShort,     // a read or a write moves fewer bytes than asked for, and says so
  kTruncate,  // a read finds the end of the file; a write loses its end, and does not say so
  kCorrupt,   // one bit of what is read or written is another
  kDelay,     // it is executed so much later
  kReorder,   // it is executed within so long, behind others that were submitted after it
  kHang,      // it is not executed before Faults::release()
};

inline constexpr std::array kFaultKinds = {
    FaultKind::kEio,     FaultKind::kEnospc,  FaultKind::kEdquot,   FaultKind::kEstale,
    FaultKind::kErofs,   FaultKind::kEagain,  FaultKind::kEintr,    FaultKind::kLost,
    FaultKind::kLostEio, FaultKind::kShort,   FaultKind::kTruncate, FaultKind::kCorrupt,
    FaultKind::kDelay,   FaultKind::kReorder, FaultKind::kHang};

[[nodiscard]] std::string_view name_of(FaultKind kind);
[[nodiscard]] std::string_view name_of(OperationKind kind);
// Positive; 0 for the kinds that are no errno. Of kLost it depends on the operation.
[[nodiscard]] int errno_of(FaultKind kind, OperationKind operation);
// Those that report a failure though the operation was executed.
[[nodiscard]] bool is_lost(FaultKind kind);
// Of those that decide when an operation is executed, not what comes of it.
[[nodiscard]] bool is_timing(FaultKind kind);

struct Fault {
  FaultKind kind{};
  double rate = 1;                      // of the operations that it can happen to: 0 to 1
  std::chrono::microseconds time{0};    // kDelay and kReorder
  std::optional<OperationKind> only{};  // nothing: wherever a kernel may answer so
  friend bool operator==(const Fault&, const Fault&) = default;

  [[nodiscard]] bool can_happen_to(const Operation& operation) const;
};

using FaultSpec = std::vector<Fault>;

// Faults, separated by commas: [OPERATION.]KIND[:TIME][:RATE], as in
// "eio:0.01,delay:20ms,reorder:5ms:0.3,write.enospc:0.05". Kinds and operations are named as
// name_of() does; a rate that is not given is 1; times are in us, ms or s. Empty: none. Throws
// std::invalid_argument, which names the nearest word that would have been right.
[[nodiscard]] FaultSpec parse_faults(std::string_view text);

}  // namespace lmkv
