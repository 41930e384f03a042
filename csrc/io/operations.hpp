// Operations on paths, as the file tasks make them.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "io/io_engine.hpp"

namespace lmkv {

[[nodiscard]] inline Operation path_operation(OperationKind kind, const std::string& path) {
  Operation op;
  op.kind = kind;
  op.path = path.c_str();
  return op;
}

[[nodiscard]] inline Operation stat_operation(const std::string& path, struct statx& status) {
  Operation op = path_operation(OperationKind::kStat, path);
  op.status = &status;
  return op;
}

[[nodiscard]] inline Operation set_modified_operation(std::int64_t modified_ns) {
  Operation op;
  op.kind = OperationKind::kSetModified;
  op.modified_ns = modified_ns;
  return op;
}

[[nodiscard]] inline bool is_older(const struct statx& found, std::int64_t modified_ns) {
  return found.stx_mtime.tv_sec * 1'000'000'000LL + found.stx_mtime.tv_nsec < modified_ns;
}

}  // namespace lmkv
