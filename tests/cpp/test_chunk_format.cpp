#include <gtest/gtest.h>

#include <cstring>
#include <vector>

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
