#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>

#include "chunk_tree.hpp"
#include "store/tree_scan.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::ChunkTree;

struct Seen final : TreeVisitor {
  void on_chunk(const RankName& rank, const ChunkKey& key, const FileFacts& facts) override {
    chunks.insert(std::string(rank.namespace16.begin(), rank.namespace16.end()) + "/r" +
                  std::to_string(rank.rank) + "/" + key.hex());
    bytes += facts.bytes;
  }
  void on_temporary(int, const char* name, const FileFacts& facts) override {
    temporaries.insert(name);
    bytes += facts.bytes;
  }
  bool keep_going() override { return steps_left-- > 0; }

  std::set<std::string> chunks;
  std::set<std::string> temporaries;
  std::uint64_t bytes = 0;
  int steps_left = 1 << 30;
};

class TreeScanTest : public ::testing::Test {
 protected:
  std::string rank_directory() {
    return std::filesystem::path(tree.paths().temporary_directory()).parent_path();
  }
  ScanOutcome scan() {
    seen = Seen();
    return scan_tree(tree.root(), seen);
  }

  ChunkTree tree;
  Seen seen;
};

TEST_F(TreeScanTest, EveryNamespaceRankAndTemporaryIsCountedByItsBlocks) {
  tree.put(1, 2 * kPageBytes, 0s);
  tree.put(2, 3 * kPageBytes, 0s, 1, 7);
  tree.put(3, 4 * kPageBytes, 0s, 2);
  tree.put_file(tree.paths().unique_temporary(), kPageBytes);
  tree.put_file(tree.paths().unique_temporary(ChunkTree::key(1)), 2 * kPageBytes);
  const std::string beside_meta =
      tree.root() + "/v1/" + test::digest_of<NamespaceDigest>(1).hex().substr(0, 16) + "/tmp";
  std::filesystem::create_directory(beside_meta);
  tree.put_file(beside_meta + "/host.name-12-0123456789abcdef", kPageBytes);
  EXPECT_EQ(scan(), ScanOutcome::kComplete);
  EXPECT_EQ(seen.chunks.size(), 3U);
  EXPECT_EQ(seen.temporaries.size(), 3U);
  EXPECT_EQ(seen.bytes, 13 * kPageBytes);
  EXPECT_TRUE(seen.chunks.contains(test::digest_of<NamespaceDigest>(1).hex().substr(0, 16) +
                                   "/r7/" + ChunkTree::key(2).hex()));
}

TEST_F(TreeScanTest, WhatIsNotOursByNameIsNeitherCountedNorShown) {
  const std::string ours = tree.put(1, kPageBytes, 0s);
  const std::string hex = ChunkTree::key(1).hex();
  const std::string fan_out = std::filesystem::path(ours).parent_path();
  std::string upper = hex;
  std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return std::toupper(c); });
  std::string elsewhere = hex;  // right, but in another key's directory
  elsewhere[0] = elsewhere[0] == '0' ? '1' : '0';
  for (const std::string& name :
       {fan_out + "/" + hex, fan_out + "/" + hex + ".kv.bak", fan_out + "/" + hex.substr(1) + ".kv",
        fan_out + "/" + upper + ".kv", fan_out + "/" + elsewhere + ".kv", fan_out + "/notes.txt",
        tree.paths().temporary_directory() + "/notes.txt", tree.root() + "/v1/" + hex + ".kv",
        tree.paths().temporary_directory() + "/a-b-c", tree.root() + "/precious.kv"}) {
    tree.put_file(name, kPageBytes);
  }
  for (const std::string& directory :
       {rank_directory() + "/xyz", rank_directory() + "/0123",
        rank_directory() + "/../r01/" + hex.substr(0, 3),
        rank_directory() + "/../r/" + hex.substr(0, 3),
        tree.root() + "/v2/0123456789abcdef/r0/" + hex.substr(0, 3),
        tree.root() + "/v1/0123456789ABCDEF/r0/" + hex.substr(0, 3)}) {
    std::filesystem::create_directories(directory);
    tree.put_file(directory + "/" + hex + ".kv", kPageBytes);
  }
  std::filesystem::create_directories(fan_out + "/" + std::string(hex).replace(63, 1, "x") + ".kv");
  std::string directory_like = hex;
  directory_like[63] = directory_like[63] == '0' ? '1' : '0';
  std::filesystem::create_directory(fan_out + "/" + directory_like + ".kv");
  EXPECT_EQ(scan(), ScanOutcome::kComplete);
  EXPECT_EQ(seen.chunks.size(), 1U);
  EXPECT_EQ(seen.temporaries.size(), 0U);
  EXPECT_EQ(seen.bytes, kPageBytes);
}

TEST_F(TreeScanTest, SymbolicLinksAreNotFollowedButForTheRootItself) {
  tree.put(1, kPageBytes, 0s);
  ChunkTree other;
  const std::string target = other.put(2, kPageBytes, 0s, 2);
  namespace fs = std::filesystem;
  const std::string name2 = test::digest_of<NamespaceDigest>(2).hex().substr(0, 16);
  fs::create_directory_symlink(other.root() + "/v1/" + name2, tree.root() + "/v1/" + name2);
  fs::create_directory_symlink(other.root() + "/v1/" + name2 + "/r0", rank_directory() + "/../r1");
  const std::string hex = ChunkTree::key(2).hex();
  fs::create_directory_symlink(fs::path(target).parent_path(),
                               rank_directory() + "/" + hex.substr(0, 3));
  std::string beside = ChunkTree::key(1).hex();
  beside[63] = beside[63] == '0' ? '1' : '0';
  fs::create_symlink(target, rank_directory() + "/" + beside.substr(0, 3) + "/" + beside + ".kv");
  EXPECT_EQ(scan(), ScanOutcome::kIncomplete);
  EXPECT_EQ(seen.chunks.size(), 1U);
  for (const std::string& link : {tree.root() + "/v1/" + name2, rank_directory() + "/../r1"}) {
    fs::remove(link);
    EXPECT_EQ(scan(), ScanOutcome::kIncomplete);
  }
  // The link in a file's place is nothing: stores replace it.
  fs::remove(rank_directory() + "/" + hex.substr(0, 3));
  EXPECT_EQ(scan(), ScanOutcome::kComplete);

  const test::TemporaryDirectory links;
  fs::create_directory_symlink(tree.root(), links / "root");
  Seen through_link;
  EXPECT_EQ(scan_tree(links / "root", through_link), ScanOutcome::kComplete);
  EXPECT_EQ(through_link.chunks.size(), 1U);
}

TEST_F(TreeScanTest, ARootWithNothingInItIsEmptyAndOneThatIsNotThereIsIncomplete) {
  EXPECT_EQ(scan(), ScanOutcome::kComplete);
  EXPECT_EQ(seen.bytes, 0U);
  EXPECT_EQ(scan_tree(tree.root() + "/none", seen), ScanOutcome::kIncomplete);
}

TEST_F(TreeScanTest, WhatCannotBeReadMakesTheScanIncomplete) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  tree.put(1, kPageBytes, 0s);
  tree.put(2, kPageBytes, 0s, 2);
  const std::string hidden = std::filesystem::path(tree.put(3, kPageBytes, 0s, 3)).parent_path();
  ASSERT_EQ(::chmod(hidden.c_str(), 0), 0);
  EXPECT_EQ(scan(), ScanOutcome::kIncomplete);
  EXPECT_EQ(seen.chunks.size(), 2U);
  ASSERT_EQ(::chmod(hidden.c_str(), 0700), 0);
}

TEST_F(TreeScanTest, TheVisitorEndsItAtAnyFile) {
  for (std::uint64_t n = 1; n <= 50; ++n) tree.put(n, kPageBytes, 0s);
  seen.steps_left = 60;
  EXPECT_EQ(scan_tree(tree.root(), seen), ScanOutcome::kStopped);
  EXPECT_LT(seen.chunks.size(), 50U);
  EXPECT_EQ(seen.steps_left, -1);
}

TEST_F(TreeScanTest, NoDescriptorIsLeftOpen) {
  for (std::uint64_t n = 1; n <= 5; ++n) tree.put(n, kPageBytes, 0s);
  const std::size_t before = test::open_descriptors();
  EXPECT_EQ(scan(), ScanOutcome::kComplete);
  seen.steps_left = 10;
  EXPECT_EQ(scan_tree(tree.root(), seen), ScanOutcome::kStopped);
  EXPECT_EQ(test::open_descriptors(), before);
}

TEST_F(TreeScanTest, AFileTakesWhatIsAllocatedOrItsSizeWhereThatIsNotKnown) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  constexpr std::int64_t now = 1000 * kSecond;
  EXPECT_EQ(space_of(0, 5000, 0, now), 5000U);  // the filesystem does not say
  EXPECT_EQ(space_of(8192, 5000, now, now), 8192U);
  EXPECT_EQ(space_of(4096, 5000, 0, now), 4096U);                   // compressed
  EXPECT_EQ(space_of(4096, 5000, now - 29 * kSecond, now), 5000U);  // not yet allocated
  EXPECT_EQ(space_of(4096, 5000, now - 31 * kSecond, now), 4096U);
  constexpr std::uint64_t kTerabyte = std::uint64_t{1} << 40;  // no chunk is so long
  EXPECT_EQ(space_of(0, kTerabyte, now, now), 0U);
  EXPECT_EQ(space_of(8192, kTerabyte, now, now), 8192U);
}

TEST_F(TreeScanTest, TheSizeOfAFileWithoutBlocksCounts) {
  const std::string path = tree.put(1, kPageBytes, 0s);
  std::filesystem::resize_file(path, 0);
  std::filesystem::resize_file(path, 10 * kPageBytes);  // a hole
  EXPECT_EQ(scan(), ScanOutcome::kComplete);
  EXPECT_EQ(seen.bytes, 10 * kPageBytes);
}

TEST_F(TreeScanTest, BesideChunksOnlyTheNamesOfWritersAreOurs) {
  const ChunkKey key = ChunkTree::key(1);
  const std::string own = std::filesystem::path(tree.paths().unique_temporary(key)).filename();
  EXPECT_TRUE(is_unfinished_name(own));
  EXPECT_TRUE(is_unfinished_name("a.b-c-1-0123456789abcdef"));
  for (const char* name : {"kv-20260101-0300", "a-1-0123456789abcdeF", "a-1-0123456789abcdef0",
                           "a-1-0123456789abcde", ".probe-77-aB3xYz", "0123456789abcdef"}) {
    EXPECT_FALSE(is_unfinished_name(name)) << name;
    tree.put(1, kPageBytes, 0s);
    tree.put_file(std::filesystem::path(tree.paths().chunk(key)).parent_path() / name, kPageBytes);
  }
  EXPECT_EQ(scan(), ScanOutcome::kComplete);
  EXPECT_EQ(seen.temporaries.size(), 0U);
  EXPECT_EQ(seen.bytes, kPageBytes);
}

}  // namespace
}  // namespace lmkv
