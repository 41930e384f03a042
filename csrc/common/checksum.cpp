#include "common/checksum.hpp"

#include <xxhash.h>

#include "common/checksum_avx2.hpp"

namespace lmkv {
namespace {

std::uint64_t xxh3_of_library(const void* bytes, std::size_t count) {
  return XXH3_64bits(bytes, count);
}

using Function = std::uint64_t (*)(const void*, std::size_t);

Function fastest() {
#ifdef LMKV_HAVE_AVX2_BUILD
  if (__builtin_cpu_supports("avx2") != 0) return xxh3_avx2;
#endif
  return xxh3_of_library;
}

const Function kFunction = fastest();

}  // namespace

std::uint64_t xxh3(const void* bytes, std::size_t count) { return kFunction(bytes, count); }

const char* xxh3_instructions() {
  return kFunction == xxh3_of_library ? "as the library was built" : "AVX2";
}

}  // namespace lmkv
