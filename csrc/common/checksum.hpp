// XXH3-64, by the widest instructions of this processor that pay.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmkv {

// Any thread. The same value on every machine.
std::uint64_t xxh3(const void* bytes, std::size_t count);

// "AVX2", or "as the library was built": distributions build it for their oldest processor.
const char* xxh3_instructions();

}  // namespace lmkv
