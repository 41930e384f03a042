#include <gtest/gtest.h>
#include <xxhash.h>

#include "common/checksum.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

// Files are shared: what one machine has summed with AVX2, another verifies without.
TEST(Checksum, IsTheLibrarysWhateverTheProcessor) {
  std::vector<std::byte> bytes(70000);
  test::fill_random(bytes, 1);
  for (const std::size_t count :
       {0, 1, 3, 8, 16, 17, 128, 129, 240, 241, 1024, 4096, 65536, 69999}) {
    for (const std::size_t at : {0, 1}) {
      const std::byte* const begin = bytes.data() + at;
      EXPECT_EQ(xxh3(begin, count), XXH3_64bits(begin, count)) << count << " bytes from " << at;
    }
  }
}

TEST(Checksum, TakesAvx2WhereTheProcessorHasIt) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") != 0) {
    EXPECT_STREQ(xxh3_instructions(), "AVX2");
  }
#endif
  EXPECT_NE(std::string(xxh3_instructions()), "");
}

}  // namespace
}  // namespace lmkv
