#include "io/fault_spec.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>

namespace lmkv {
namespace {

constexpr std::array kOperationKinds = {
    OperationKind::kEnter,           OperationKind::kOpen,          OperationKind::kRead,
    OperationKind::kWrite,           OperationKind::kAllocate,      OperationKind::kSync,
    OperationKind::kSetModified,     OperationKind::kClose,         OperationKind::kStat,
    OperationKind::kRename,          OperationKind::kMakeDirectory, OperationKind::kUnlink,
    OperationKind::kRemoveDirectory, OperationKind::kWriteBack,     OperationKind::kDropPages,
    OperationKind::kSetMode};

constexpr std::chrono::microseconds kReorderWithin{5000};

bool moves_bytes(OperationKind kind) {
  return kind == OperationKind::kRead || kind == OperationKind::kWrite;
}

bool takes_time(FaultKind kind) { return kind == FaultKind::kDelay || kind == FaultKind::kReorder; }

// Which need room on the disk, and which need a filesystem that may be written to.
bool takes_space(const Operation& op) {
  switch (op.kind) {
    case OperationKind::kOpen: return (op.flags & O_CREAT) != 0;
    case OperationKind::kWrite:
    case OperationKind::kAllocate:
    case OperationKind::kSync:
    case OperationKind::kWriteBack:
    case OperationKind::kClose:  // NFS says it here
    case OperationKind::kRename:
    case OperationKind::kMakeDirectory: return true;
    case OperationKind::kEnter:
    case OperationKind::kRead:
    case OperationKind::kSetModified:
    case OperationKind::kSetMode:
    case OperationKind::kStat:
    case OperationKind::kUnlink:
    case OperationKind::kRemoveDirectory:
    case OperationKind::kDropPages:
    case OperationKind::kPause:
    case OperationKind::kDefer: return false;
  }
  return false;
}

bool changes(const Operation& op) {
  switch (op.kind) {
    case OperationKind::kSetModified:
    case OperationKind::kSetMode:
    case OperationKind::kUnlink:
    case OperationKind::kRemoveDirectory: return true;
    case OperationKind::kClose: return false;
    default: return takes_space(op);
  }
}

// Those whose second try finds out that there was a first; of kOpen only with O_EXCL.
bool may_show_when_repeated(OperationKind kind) {
  switch (kind) {
    case OperationKind::kOpen:
    case OperationKind::kRename:
    case OperationKind::kMakeDirectory:
    case OperationKind::kUnlink:
    case OperationKind::kRemoveDirectory: return true;
    default: return false;
  }
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

[[noreturn]] void refuse(std::string_view item, const std::string& why) {
  throw std::invalid_argument("fault \"" + std::string(item) + "\": " + why);
}

template <typename Kind>
Kind named(std::string_view name, std::span<const Kind> kinds, const char* what,
           std::string_view item) {
  const auto distance = [&](Kind kind) { return edit_distance(name, name_of(kind)); };
  const Kind nearest = *std::ranges::min_element(kinds, {}, distance);
  if (name_of(nearest) == name) return nearest;
  std::string known;
  for (const Kind kind : kinds) known += (known.empty() ? "" : ", ") + std::string(name_of(kind));
  refuse(item, "no " + std::string(what) + " is called \"" + std::string(name) +
                   "\"; the nearest is " + std::string(name_of(nearest)) + " (of " + known + ")");
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(' ');
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(' ') + 1 - begin);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(separator, at), text.size());
    parts.push_back(trimmed(text.substr(at, end - at)));
    at = end + 1;
  }
  return parts;
}

// A number and what stands behind it; nothing without a number.
std::optional<std::pair<double, std::string_view>> number(std::string_view text) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc()) return std::nullopt;
  return std::pair(value, std::string_view(rest, static_cast<std::size_t>(end - rest)));
}

std::optional<std::chrono::microseconds> time_from(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {{"us", 1}, {"ms", 1e3}, {"s", 1e6}};
  const auto found = number(text);
  if (!found) return std::nullopt;
  for (const auto& [unit, microseconds] : kUnits) {
    const double value = found->first * microseconds;
    if (found->second == unit && value >= 0 && value <= 3600e6) {
      return std::chrono::microseconds(static_cast<std::int64_t>(value));
    }
  }
  return std::nullopt;
}

std::optional<double> rate_from(std::string_view text) {
  const auto found = number(text);
  const bool sound = found && found->second.empty() && found->first >= 0 && found->first <= 1;
  return sound ? std::optional(found->first) : std::nullopt;
}

Fault parse_fault(std::string_view item) {
  std::vector<std::string_view> fields = split(item, ':');
  Fault fault;
  std::string_view kind = fields.front();
  if (const std::size_t dot = kind.find('.'); dot != std::string_view::npos) {
    fault.only = named(kind.substr(0, dot), std::span<const OperationKind>(kOperationKinds),
                       "operation", item);
    kind = kind.substr(dot + 1);
  }
  fault.kind = named(kind, std::span<const FaultKind>(kFaultKinds), "kind of fault", item);
  fields.erase(fields.begin());

  const bool bytes = fault.kind == FaultKind::kShort || fault.kind == FaultKind::kTruncate ||
                     fault.kind == FaultKind::kCorrupt;
  if (bytes && fault.only && !moves_bytes(*fault.only)) refuse(item, "reads and writes only");
  if (fault.kind == FaultKind::kLost && fault.only && !may_show_when_repeated(*fault.only)) {
    refuse(item, "open, rename, mkdir, unlink and rmdir only");
  }
  if (fault.kind == FaultKind::kReorder) fault.time = kReorderWithin;
  if (takes_time(fault.kind) && !fields.empty()) {
    if (const auto time = time_from(fields.front())) {
      fault.time = *time;
      fields.erase(fields.begin());
    }
  }
  if (fault.kind == FaultKind::kDelay && fault.time.count() == 0) {
    refuse(item, "how long? as in delay:20ms, in us, ms or s, an hour at most");
  }
  if (!fields.empty()) {
    const auto rate = rate_from(fields.front());
    if (!rate) refuse(item, "\"" + std::string(fields.front()) + "\" is no rate from 0 to 1");
    fault.rate = *rate;
    fields.erase(fields.begin());
  }
  if (!fields.empty()) refuse(item, "\"" + std::string(fields.front()) + "\" is too much");
  return fault;
}

}  // namespace

std::string_view name_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::kEio: return "eio";
    case FaultKind::kEnospc: return "enospc";
    case FaultKind::kEdquot: return "edquot";
    case FaultKind::kEstale: return "estale";
    case FaultKind::kErofs: return "erofs";
    case FaultKind::kEagain: return "eagain";
    case FaultKind::kEintr: return "eintr";
    case FaultKind::kLost: return "lost";
    case FaultKind::kLostEio: return "lost_eio";
    case FaultKind::kShort: return "short";
    case FaultKind::kTruncate: return "truncate";
    case FaultKind::kCorrupt: return "corrupt";
    case FaultKind::kDelay: return "delay";
    case FaultKind::kReorder: return "reorder";
    case FaultKind::kHang: return "hang";
  }
  return "unknown";
}

std::string_view name_of(OperationKind kind) {
  switch (kind) {
    case OperationKind::kEnter: return "enter";
    case OperationKind::kOpen: return "open";
    case OperationKind::kRead: return "read";
    case OperationKind::kWrite: return "write";
    case OperationKind::kAllocate: return "allocate";
    case OperationKind::kSync: return "sync";
    case OperationKind::kSetModified: return "touch";
    case OperationKind::kSetMode: return "chmod";
    case OperationKind::kClose: return "close";
    case OperationKind::kStat: return "stat";
    case OperationKind::kRename: return "rename";
    case OperationKind::kMakeDirectory: return "mkdir";
    case OperationKind::kUnlink: return "unlink";
    case OperationKind::kRemoveDirectory: return "rmdir";
    case OperationKind::kWriteBack: return "writeback";
    case OperationKind::kDropPages: return "drop";
    case OperationKind::kPause: return "pause";
    case OperationKind::kDefer: return "defer";
  }
  return "unknown";
}

int errno_of(FaultKind kind, OperationKind operation) {
  switch (kind) {
    case FaultKind::kEio: return EIO;
    case FaultKind::kEnospc: return ENOSPC;
    case FaultKind::kEdquot: return EDQUOT;
    case FaultKind::kEstale: return ESTALE;
    case FaultKind::kErofs: return EROFS;
    case FaultKind::kEagain: return EAGAIN;
    case FaultKind::kEintr: return EINTR;
    case FaultKind::kLost: {
      const bool makes =
          operation == OperationKind::kOpen || operation == OperationKind::kMakeDirectory;
      return makes ? EEXIST : ENOENT;
    }
    case FaultKind::kLostEio: return EIO;
    case FaultKind::kShort:
    case FaultKind::kTruncate:
    case FaultKind::kCorrupt:
    case FaultKind::kDelay:
    case FaultKind::kReorder:
    case FaultKind::kHang: break;
  }
  return 0;
}

bool is_lost(FaultKind kind) { return kind == FaultKind::kLost || kind == FaultKind::kLostEio; }

bool is_timing(FaultKind kind) { return takes_time(kind) || kind == FaultKind::kHang; }

bool Fault::can_happen_to(const Operation& operation) const {
  if (only && *only != operation.kind) return false;
  if (kind == FaultKind::kLost) {
    const bool opens = operation.kind == OperationKind::kOpen;
    return may_show_when_repeated(operation.kind) && (!opens || (operation.flags & O_EXCL) != 0);
  }
  if (only) return true;
  switch (kind) {
    case FaultKind::kEnospc:
    case FaultKind::kEdquot: return takes_space(operation);
    case FaultKind::kErofs: return changes(operation);
    case FaultKind::kShort:
    case FaultKind::kTruncate:
    case FaultKind::kCorrupt: return moves_bytes(operation.kind);
    default: return true;
  }
}

FaultSpec parse_faults(std::string_view text) {
  FaultSpec spec;
  if (trimmed(text).empty()) return spec;
  for (const std::string_view item : split(text, ',')) spec.push_back(parse_fault(item));
  return spec;
}

}  // namespace lmkv
