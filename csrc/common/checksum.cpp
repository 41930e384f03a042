#include "common/checksum.hpp"

#include <xxhash.h>

#include <new>

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

Xxh3Stream::Xxh3Stream() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_));
}

Xxh3Stream::~Xxh3Stream() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

void Xxh3Stream::add(const void* bytes, std::size_t count) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), bytes, count);
}

std::uint64_t Xxh3Stream::value() const {
  return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_));
}

const char* xxh3_instructions() {
  return kFunction == xxh3_of_library ? "as the library was built" : "AVX2";
}

}  // namespace lmkv
