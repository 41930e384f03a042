// Compiled with -mavx2. Nothing of the C++ library is included: an inline function of it, compiled
// here, could be the copy that the linker keeps for all.
#define XXH_INLINE_ALL
#include "common/checksum_avx2.hpp"

#include <xxhash.h>

namespace lmkv {

std::uint64_t xxh3_avx2(const void* bytes, std::size_t count) { return XXH3_64bits(bytes, count); }

}  // namespace lmkv
