#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "common/checksum.hpp"
#include "store/chunk_format.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using test::digest_of;

ChunkIdentity some_identity() {
  ChunkIdentity identity;
  identity.namespace_digest = digest_of<NamespaceDigest>(1);
  identity.key = digest_of<ChunkKey>(2);
  identity.rank = 3;
  identity.token_begin = 512;
  identity.block_tokens = 16;
  identity.block_count = 5;
  identity.block_bytes = 3000;  // the payload does not end at a page
  return identity;
}

std::vector<std::byte> sealed(const ChunkIdentity& identity) {
  std::vector<std::byte> slab(identity.file_bytes());
  test::fill_random(slab, 7);
  seal_chunk(slab, identity);
  return slab;
}

TEST(ChunkFormat, SizesAreWholePages) {
  const ChunkIdentity identity = some_identity();
  EXPECT_EQ(identity.payload_bytes(), 15000U);
  EXPECT_EQ(identity.file_bytes(), 4096U + 16384U);
}

TEST(ChunkFormat, ASealedChunkVerifies) {
  const ChunkIdentity identity = some_identity();
  EXPECT_EQ(verify_chunk(sealed(identity), identity), ChunkFault::kNone);
}

TEST(ChunkFormat, TheHeaderIsWhereTheDocumentSaysItIs) {
  const std::vector<std::byte> slab = sealed(some_identity());
  const auto u32_at = [&](std::size_t offset) {
    std::uint32_t value;
    std::memcpy(&value, slab.data() + offset, sizeof value);
    return value;
  };
  EXPECT_EQ(std::memcmp(slab.data(), "\x89LMKV\r\n\x1a", 8), 0);
  EXPECT_EQ(u32_at(8), 1U);      // format version
  EXPECT_EQ(u32_at(12), 4096U);  // header bytes
  EXPECT_EQ(std::memcmp(slab.data() + 24, some_identity().namespace_digest.bytes.data(), 32), 0);
  EXPECT_EQ(std::memcmp(slab.data() + 56, some_identity().key.bytes.data(), 32), 0);
  EXPECT_EQ(u32_at(88), 3U);       // rank
  EXPECT_EQ(u32_at(92), 16U);      // block tokens
  EXPECT_EQ(u32_at(96), 512U);     // token begin, low half
  EXPECT_EQ(u32_at(104), 80U);     // token count
  EXPECT_EQ(u32_at(108), 5U);      // block count
  EXPECT_EQ(u32_at(112), 3000U);   // block bytes, low half
  EXPECT_EQ(u32_at(120), 15000U);  // payload bytes, low half
}

TEST(ChunkFormat, PaddingIsZero) {
  const std::vector<std::byte> slab = sealed(some_identity());
  for (std::size_t i = 4096 + 15000; i < slab.size(); ++i) EXPECT_EQ(slab[i], std::byte{0});
}

TEST(ChunkFormat, EveryFlippedByteOfHeaderAndPayloadIsFound) {
  const ChunkIdentity identity = some_identity();
  std::vector<std::byte> slab = sealed(identity);
  const std::size_t end = kHeaderBytes + identity.payload_bytes();
  for (std::size_t i = 0; i < end; i += (i < 512 ? 1 : 37)) {
    slab[i] ^= std::byte{0x40};
    EXPECT_NE(verify_chunk(slab, identity), ChunkFault::kNone) << "byte " << i;
    slab[i] ^= std::byte{0x40};
  }
  EXPECT_EQ(verify_chunk(slab, identity), ChunkFault::kNone);
}

TEST(ChunkFormat, TwoSwappedBlocksAreFound) {
  const ChunkIdentity identity = some_identity();
  std::vector<std::byte> slab = sealed(identity);
  std::byte* const first = slab.data() + kHeaderBytes;
  std::swap_ranges(first, first + identity.block_bytes, first + identity.block_bytes);
  EXPECT_EQ(verify_chunk(slab, identity), ChunkFault::kBlockChecksum);
}

TEST(ChunkFormat, ASoundChunkOfAnotherIdentityIsRefused) {
  const ChunkIdentity identity = some_identity();
  const std::vector<std::byte> slab = sealed(identity);
  const auto differing = [&](auto change) {
    ChunkIdentity other = identity;
    change(other);
    return verify_chunk(slab, other);
  };
  using I = ChunkIdentity;
  EXPECT_EQ(differing([](I& i) { i.namespace_digest.bytes[31] ^= 1; }), ChunkFault::kOtherIdentity);
  EXPECT_EQ(differing([](I& i) { i.key.bytes[0] ^= 1; }), ChunkFault::kOtherIdentity);
  EXPECT_EQ(differing([](I& i) { i.rank = 0; }), ChunkFault::kOtherIdentity);
  EXPECT_EQ(differing([](I& i) { i.token_begin += 16; }), ChunkFault::kOtherIdentity);
  EXPECT_EQ(differing([](I& i) { i.block_tokens *= 2; }), ChunkFault::kOtherIdentity);
  EXPECT_EQ(differing([](I& i) { i.block_count -= 1; }), ChunkFault::kOtherIdentity);
  EXPECT_EQ(differing([](I& i) { i.block_bytes -= 8; }), ChunkFault::kOtherIdentity);
}

// A header that whoever wrote it has checksummed rightly.
std::vector<std::byte> with_number(std::vector<std::byte> slab, std::size_t offset,
                                   std::uint64_t value, std::size_t bytes) {
  std::memcpy(slab.data() + offset, &value, bytes);
  std::memset(slab.data() + 16, 0, 8);
  const std::uint64_t sum = xxh3(slab.data(), kHeaderBytes);
  std::memcpy(slab.data() + 16, &sum, sizeof sum);
  return slab;
}

TEST(ChunkFormat, AHeaderThatNoWriterMakesIsRefusedByLoadsAndToolsAlike) {
  const ChunkIdentity identity = some_identity();
  const std::vector<std::byte> good = sealed(identity);
  ChunkIdentity found;
  ASSERT_EQ(read_identity(with_number(good, 108, 5, 4), found), ChunkFault::kNone);
  ASSERT_EQ(verify_chunk(with_number(good, 108, 5, 4), identity), ChunkFault::kNone);
  struct Number {
    std::size_t offset;
    std::uint64_t value;
    std::size_t bytes;
  };
  // Header bytes, token count, reserved, a checksum of a block that there is not.
  for (const Number& n : {Number{12, 8192, 4}, Number{104, 81, 4}, Number{128, 1, 8},
                          Number{248, 1, 8}, Number{256 + 5 * 8, 1, 8}, Number{4088, 1, 8}}) {
    const auto slab = with_number(good, n.offset, n.value, n.bytes);
    EXPECT_EQ(read_identity(slab, found), ChunkFault::kOtherIdentity) << n.offset;
    EXPECT_EQ(verify_chunk(slab, identity), ChunkFault::kOtherIdentity) << n.offset;
  }
  auto overflowing = with_number(good, 92, 0x8000'0000, 4);  // times 5: the low half says 2^31
  overflowing = with_number(overflowing, 104, 0x8000'0000, 4);
  EXPECT_EQ(read_identity(overflowing, found), ChunkFault::kOtherIdentity);
}

TEST(ChunkFormat, ZerosAndOtherVersionsAreNamed) {
  const ChunkIdentity identity = some_identity();
  const std::vector<std::byte> zeros(identity.file_bytes());
  EXPECT_EQ(verify_chunk(zeros, identity), ChunkFault::kNotAChunk);
  std::vector<std::byte> newer = sealed(identity);
  newer[8] = std::byte{2};
  EXPECT_EQ(verify_chunk(newer, identity), ChunkFault::kOtherVersion);
}

}  // namespace
}  // namespace lmkv
