#include "common/build_info.hpp"

#include <xxhash.h>

// The LMKV_BUILD_* texts come from CMakeLists.txt.
namespace lmkv {

BuildInfo build_info() {
  const unsigned xxhash = XXH_versionNumber();
  BuildInfo info;
  info.version = LMKV_BUILD_VERSION;
  info.compiler = LMKV_BUILD_COMPILER;
  info.liburing = LMKV_BUILD_LIBURING;
  info.xxhash = std::to_string(xxhash / 10000) + "." + std::to_string(xxhash / 100 % 100) + "." +
                std::to_string(xxhash % 100);
  info.cuda = LMKV_BUILD_CUDA;
  info.cuda_architectures = LMKV_BUILD_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace lmkv
