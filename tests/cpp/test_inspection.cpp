#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "chunk_tree.hpp"
#include "common/checksum.hpp"
#include "store/inspection.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using test::ChunkTree;
using test::digest_of;

class InspectionTest : public ::testing::Test {
 protected:
  InspectionTest() {
    identity.namespace_digest = digest_of<NamespaceDigest>(1);
    identity.key = ChunkTree::key(1);
    identity.rank = 2;
    identity.token_begin = 256;
    identity.block_tokens = 16;
    identity.block_count = 5;
    identity.block_bytes = 3000;
    slab.resize(identity.file_bytes());
    test::fill_random(slab, 7);
    seal_chunk(slab, identity);
    path = tree.put(1, kPageBytes, ChunkTree::Age(0), 1, 2);
    write();
    const std::string hex = identity.namespace_digest.hex();
    std::copy_n(hex.begin(), rank.namespace16.size(), rank.namespace16.begin());
    rank.rank = 2;
  }

  void write() { test::write_file(path, slab); }
  [[nodiscard]] Inspection inspect(Inspect depth = Inspect::kHeaderAndBlocks) const {
    return inspect_chunk(tree.root(), rank, identity.key, depth);
  }
  // Numbers of a header that whoever wrote it has checksummed rightly.
  void put_header(std::size_t offset, std::uint64_t value, std::size_t bytes) {
    std::memcpy(slab.data() + offset, &value, bytes);
    std::memset(slab.data() + 16, 0, 8);
    const std::uint64_t sum = xxh3(slab.data(), kHeaderBytes);
    std::memcpy(slab.data() + 16, &sum, sizeof sum);
    write();
  }

  ChunkTree tree;
  ChunkIdentity identity;
  RankName rank;
  std::vector<std::byte> slab;
  std::string path;
};

TEST_F(InspectionTest, ASoundChunkSaysWhatItIs) {
  const Inspection found = inspect();
  EXPECT_EQ(found.finding, Finding::kSound);
  EXPECT_EQ(found.text, "");
  EXPECT_EQ(found.bytes, identity.file_bytes());
  EXPECT_EQ(found.identity.token_begin, 256U);
  EXPECT_EQ(found.identity.block_count, 5U);
  EXPECT_EQ(found.identity.block_bytes, 3000U);
  EXPECT_EQ(found.modified_ns, test::modified_ns(path));
}

TEST_F(InspectionTest, AnyByteOfHeaderOrBlocksThatDiffersIsBad) {
  for (const std::size_t at : {0U, 8U, 20U, 30U, 60U, 88U, 112U, 200U, 4095U, 4096U, 19095U}) {
    slab[at] ^= std::byte{4};
    write();
    EXPECT_EQ(inspect().finding, Finding::kBad) << at;
    EXPECT_NE(inspect().text, "") << at;
    slab[at] ^= std::byte{4};
  }
  write();
  EXPECT_EQ(inspect().finding, Finding::kSound);
}

TEST_F(InspectionTest, OfTheHeaderAloneBlocksMayDiffer) {
  slab[5000] ^= std::byte{1};
  write();
  EXPECT_EQ(inspect(Inspect::kHeader).finding, Finding::kSound);
  EXPECT_EQ(inspect().text, to_string(ChunkFault::kBlockChecksum));
}

TEST_F(InspectionTest, AnotherLengthIsBad) {
  for (const std::size_t size : {0UL, 100UL, kHeaderBytes, slab.size() - 1, slab.size() + 4096}) {
    std::filesystem::resize_file(path, size);
    EXPECT_EQ(inspect(Inspect::kHeader).finding, Finding::kBad) << size;
  }
}

TEST_F(InspectionTest, ASoundChunkInAnothersPlaceIsBad) {
  const std::string other = tree.put(2, kPageBytes, ChunkTree::Age(0), 1, 2);
  std::filesystem::copy_file(path, other, std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(inspect_chunk(tree.root(), rank, ChunkTree::key(2), Inspect::kHeader).text,
            to_string(ChunkFault::kOtherIdentity));
  const std::string elsewhere = tree.put(1, kPageBytes, ChunkTree::Age(0), 1, 3);
  std::filesystem::copy_file(path, elsewhere, std::filesystem::copy_options::overwrite_existing);
  RankName other_rank = rank;
  other_rank.rank = 3;
  EXPECT_EQ(inspect_chunk(tree.root(), other_rank, identity.key, Inspect::kHeader).finding,
            Finding::kBad);
}

TEST_F(InspectionTest, NumbersThatCannotBeAreBadHoweverWellTheyAreChecksummed) {
  constexpr std::size_t kBlockCount = 108, kBlockBytes = 112, kPayloadBytes = 120;
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 62;
  const auto put = [&](std::uint64_t blocks, std::uint64_t block_bytes, std::uint64_t payload) {
    put_header(kBlockCount, blocks, 4);
    put_header(kBlockBytes, block_bytes, 8);
    put_header(kPayloadBytes, payload, 8);
  };
  put(5, 3000, 15000);
  EXPECT_EQ(inspect().finding, Finding::kSound);  // these are the right ones
  put(5, kHuge, 5 * kHuge);                       // which overflows
  EXPECT_EQ(inspect().finding, Finding::kBad);
  put(2, kHuge, 2 * kHuge);
  EXPECT_EQ(inspect().finding, Finding::kBad);
  put(5, 0, 0);
  EXPECT_EQ(inspect().finding, Finding::kBad);
  put(0, 3000, 0);
  EXPECT_EQ(inspect().finding, Finding::kBad);
  // More blocks than a header has checksums for, in a file that is as long as that.
  put(kMaxBlocksPerChunk + 1, 8, (kMaxBlocksPerChunk + 1) * 8);
  std::filesystem::resize_file(path, 2 * kPageBytes);
  EXPECT_EQ(inspect().finding, Finding::kBad);
}

TEST_F(InspectionTest, ABlockOfAnySizeIsReadPieceByPiece) {
  identity.block_count = 2;
  identity.block_bytes = (3 << 20) + 1234;
  slab.assign(identity.file_bytes(), std::byte{});
  test::fill_random(slab, 8);
  seal_chunk(slab, identity);
  write();
  EXPECT_EQ(inspect().finding, Finding::kSound);
  slab[kHeaderBytes + (5 << 20)] ^= std::byte{1};
  write();
  EXPECT_EQ(inspect().finding, Finding::kBad);
}

TEST_F(InspectionTest, WhatIsNoFileIsNotReadAndNotWaitedFor) {
  const std::string real = path + ".real";
  std::filesystem::rename(path, real);
  EXPECT_EQ(inspect().finding, Finding::kGone);
  std::filesystem::create_symlink(real, path);
  EXPECT_EQ(inspect().finding, Finding::kBad);
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(inspect().finding, Finding::kBad);
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  EXPECT_EQ(inspect().finding, Finding::kBad);
}

}  // namespace
}  // namespace lmkv
