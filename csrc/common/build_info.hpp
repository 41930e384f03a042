// What this binary was built with, for `lmkv doctor`. Empty strings mean: not built in.
#pragma once

#include <string>

namespace lmkv {

struct BuildInfo {
  std::string version;
  std::string compiler;
  std::string liburing;
  std::string xxhash;
  std::string cuda;
  std::string cuda_architectures;
};

[[nodiscard]] BuildInfo build_info();

}  // namespace lmkv
