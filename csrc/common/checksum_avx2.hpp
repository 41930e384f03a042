// Private to checksum.cpp: it alone knows whether this processor can run it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmkv {

std::uint64_t xxh3_avx2(const void* bytes, std::size_t count);

}  // namespace lmkv
