#include <gtest/gtest.h>

#include <filesystem>

#include "store/directory.hpp"
#include "store/tree_names.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

TEST(TreeNames, TemporaryNamesAreThoseOfWritersAndProbes) {
  const ChunkPaths paths("/kv", NamespaceDigest{}, 0);
  const std::string own = std::filesystem::path(paths.unique_temporary()).filename();
  for (const char* name : {own.c_str(), "a.b-c-1-00ff", ".probe-77-aB3xYz"}) {
    EXPECT_TRUE(is_temporary_name(name)) << name;
  }
  for (const char* name : {"", "-", "--", "a-b", "-1-a", "a-1-", "a--b", "a-x-b", "a-1-b.c", "a"}) {
    EXPECT_FALSE(is_temporary_name(name)) << name;
  }
}

TEST(TreeNames, ARankIsTheNameThatItWouldBeGiven) {
  for (const std::uint32_t rank : {0U, 7U, 10U, 4294967295U}) {
    EXPECT_EQ(rank_of("r" + std::to_string(rank)), rank);
  }
  for (const char* name : {"", "r", "0", "r00", "r007", "r+7", "r-1", "r 1", "r1 ", "R1", "r0x1",
                           "r4294967296", "r1.0"}) {
    EXPECT_FALSE(rank_of(name)) << name;
  }
}

TEST(TreeNames, AChunkIsTheNameThatItWouldBeGivenInItsOwnDirectory) {
  const ChunkKey key = test::digest_of<ChunkKey>(1);
  const std::string name = chunk_file_name(key);
  EXPECT_EQ(key_of(name, name.substr(0, 3)), key);
  EXPECT_FALSE(key_of(name, "xyz"));
  EXPECT_FALSE(key_of(name.substr(1), name.substr(1, 3)));
  EXPECT_FALSE(key_of(name + "x", name.substr(0, 3)));
  EXPECT_FALSE(key_of(name.substr(0, 64), name.substr(0, 3)));
}

}  // namespace
}  // namespace lmkv
