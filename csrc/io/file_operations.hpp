// The operations that the state machines of files are made of. Private to them.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <string>

#include "io/io_engine.hpp"

namespace lmkv {

inline Operation open_operation(const std::string& path, int flags, Caching caching,
                                mode_t mode = 0) {
  Operation op;
  op.kind = OperationKind::kOpen;
  op.path = path.c_str();
  op.flags = flags | O_NOFOLLOW | O_CLOEXEC | (caching == Caching::kDirect ? O_DIRECT : 0);
  op.mode = mode;
  return op;
}

// `mode`: of kMakeDirectory and kSetMode alone.
inline Operation path_operation(OperationKind kind, const std::string& path, mode_t mode = 0) {
  Operation op;
  op.kind = kind;
  op.path = path.c_str();
  op.mode = mode;
  return op;
}

inline Operation descriptor_operation(OperationKind kind, int descriptor) {
  Operation op;
  op.kind = kind;
  op.descriptor = descriptor;
  return op;
}

inline Operation set_modified_operation(std::int64_t modified_ns) {
  Operation op;
  op.kind = OperationKind::kSetModified;
  op.modified_ns = modified_ns;
  return op;
}

// `flags`: 0 or kAskServer.
inline Operation stat_operation(const std::string& path, struct statx& status, int flags = 0) {
  Operation op = path_operation(OperationKind::kStat, path);
  op.status = &status;
  op.flags = flags;
  return op;
}

}  // namespace lmkv
