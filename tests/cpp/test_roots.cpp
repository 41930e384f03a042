// Several directories: chunks are spread, and one that fails takes no other with it.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "engine_fixture.hpp"
#include "store/stripes.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::blocks_from;
using test::ids;
using test::key;

constexpr std::uint64_t kChunks = 40;

std::vector<std::string> names(std::initializer_list<const char*> list) {
  return {list.begin(), list.end()};
}

TEST(Stripes, SpreadEvenlyWhateverTheOrder) {
  const Stripes stripes(names({"/a", "/b", "/c", "/d"}));
  const Stripes turned(names({"/d", "/c", "/b", "/a"}));
  std::map<std::size_t, int> counts;
  for (std::uint64_t k = 0; k < 4000; ++k) {
    const std::size_t root = stripes.of(key(k));
    EXPECT_EQ(turned.of(key(k)), 3 - root);
    ++counts[root];
  }
  ASSERT_EQ(counts.size(), 4U);
  for (const auto& [root, count] : counts) EXPECT_NEAR(count, 1000, 150);
}

TEST(Stripes, ARootMoreMovesNothingBetweenTheOthers) {
  const Stripes three(names({"/a", "/b", "/c"}));
  const Stripes four(names({"/a", "/b", "/c", "/d"}));
  int moved = 0;
  for (std::uint64_t k = 0; k < 4000; ++k) {
    if (four.of(key(k)) == 3) {
      ++moved;
    } else {
      EXPECT_EQ(four.of(key(k)), three.of(key(k)));
    }
  }
  EXPECT_NEAR(moved, 1000, 150);
}

class RootsTest : public test::EngineTest {
 protected:
  RootsTest() { options.roots = {root / "a", root / "b"}; }

  [[nodiscard]] std::size_t root_of(std::uint64_t k) const {
    return Stripes(options.roots).of(key(k));
  }
  [[nodiscard]] std::size_t files_in(std::size_t index) const {
    return test::count_files(options.roots[index]);
  }
  // Keys of one root, from `first` on.
  [[nodiscard]] std::vector<std::uint64_t> keys_of(std::size_t index, std::size_t count,
                                                   std::uint64_t first = 0) const {
    std::vector<std::uint64_t> found;
    for (std::uint64_t k = first; found.size() < count; ++k) {
      if (root_of(k) == index) found.push_back(k);
    }
    return found;
  }
};

TEST_P(RootsTest, ChunksAreSpreadAndLoadedFromEach) {
  start();
  std::map<std::uint64_t, std::vector<std::byte>> expected;
  for (std::uint64_t k = 0; k < kChunks; ++k) {
    const auto source = ids({static_cast<std::uint32_t>(k), 1, 2, 3});
    expected[k] = bytes_of(source);
    store(k, source);
  }
  EXPECT_GT(files_in(0), kChunks / 4);
  EXPECT_GT(files_in(1), kChunks / 4);
  EXPECT_EQ(files_in(0) + files_in(1), kChunks);
  start();
  for (std::uint64_t k = 0; k < kChunks; ++k) {
    EXPECT_TRUE(load({chunk(k, ids({50, 51, 52, 53}))}).failed_chunks.empty());
    EXPECT_EQ(bytes_of(ids({50, 51, 52, 53})), expected[k]);
  }
  const Directory directory(options.roots, options.namespace_digest, 1);
  std::vector<ChunkKey> keys;
  for (std::uint64_t k = 0; k < kChunks; ++k) keys.push_back(key(k));
  EXPECT_EQ(directory.lookup(keys), kChunks);

  // What is out of service is not asked, also by copies that others made before.
  Directory copy = directory;
  Directory other = copy;
  copy.set_out_of_service({1});
  const std::vector<bool> there = other.present(keys, Until::kEnd);
  for (std::uint64_t k = 0; k < kChunks; ++k) EXPECT_EQ(there[k], root_of(k) == 0);
  copy.set_out_of_service({});
  EXPECT_EQ(directory.lookup(keys), kChunks);
}

TEST_P(RootsTest, ARootThatCannotBeUsedAtStartIsLeftOutAndNamed) {
  test::write_file(root / "file", {});
  options.roots[1] = root / "file";
  start();
  EXPECT_NE(engine->info().at("roots_out").find(options.roots[1]), std::string::npos);
  EXPECT_EQ(engine->roots_out_of_service(), std::vector<std::size_t>{1});
  store(keys_of(0, 1)[0], ids({0, 1, 2, 3}));
  const std::uint64_t other = keys_of(1, 1)[0];
  EXPECT_FALSE(engine->store(key(other), 0, ids({0, 1, 2, 3}), 0));
  EXPECT_EQ(stat("stores_dropped_out_of_service"), 1U);
  EXPECT_EQ(load({chunk(other, ids({50, 51, 52, 53}))}).failed_chunks.size(), 1U);
}

TEST_P(RootsTest, WhenNoneCanBeUsedItDoesNotStart) {
  test::write_file(root / "file", {});
  options.roots = {root / "file", root / "file/below"};
  EXPECT_THROW(static_cast<void>(make_parts(options)), std::runtime_error);
  options.roots = {};
  EXPECT_THROW(static_cast<void>(make_parts(options)), std::invalid_argument);
  options.roots = {root / "a", root / "a"};
  EXPECT_THROW(static_cast<void>(make_parts(options)), std::invalid_argument);
}

TEST_P(RootsTest, OneThatFailsIsTakenOutTheOtherGoesOnAndItComesBack) {
  std::atomic<bool> failing{true};
  start([&](Operation& operation) -> std::optional<int> {  // of the first root
    const bool creates = operation.kind == OperationKind::kOpen && (operation.flags & O_CREAT) != 0;
    return creates && failing ? std::optional(-EROFS) : std::nullopt;
  });
  const std::vector<std::uint64_t> bad = keys_of(0, 6);
  for (std::size_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(engine->store(key(bad[i]), 0, ids({0, 1, 2, 3}), 0));
    finish();
  }
  EXPECT_EQ(stat("stores_failed"), 3U);
  EXPECT_EQ(stat("stores_out_of_service"), 1U);
  EXPECT_EQ(stat("loads_out_of_service"), 0U) << "what cannot be written may be read";
  EXPECT_NE(engine->info().at("roots_out").find("Read-only"), std::string::npos);
  EXPECT_FALSE(engine->store(key(bad[3]), 0, ids({0, 1, 2, 3}), 0));
  EXPECT_EQ(stat("stores_dropped_out_of_service"), 1U);
  store(keys_of(1, 1)[0], ids({0, 1, 2, 3}));

  failing = false;
  ASSERT_TRUE(
      eventually([&] { return engine->store(key(bad[4]), 0, ids({0, 1, 2, 3}), 0).has_value(); }));
  finish();
  EXPECT_EQ(stat("stores_out_of_service"), 0U);
  EXPECT_EQ(engine->info().at("roots_out"), "");
  EXPECT_TRUE(engine->store(key(bad[5]), 0, ids({0, 1, 2, 3}), 0).has_value());
  finish();
  EXPECT_EQ(files_in(0), 2U);
  expect_all_slabs_back();
}

TEST_P(RootsTest, OneThatHangsKeepsNoLoadOfTheOtherWaiting) {
  start();
  const std::uint64_t first = keys_of(0, 1)[0];
  const std::uint64_t second = keys_of(1, 1)[0];
  store(first, ids({0, 1, 2, 3}));
  store(second, ids({4, 5, 6, 7}));
  const auto expected = bytes_of(ids({4, 5, 6, 7}));
  options.load_timeout = 100ms;
  start();
  disk->hold(OperationKind::kRead);
  engine->load({chunk(first, ids({40, 41, 42, 43}))}, 0);
  engine->load({chunk(second, ids({50, 51, 52, 53}))}, 0);
  EXPECT_TRUE(eventually([this] { return stat("chunks_loaded") == 1; }));
  EXPECT_EQ(bytes_of(ids({50, 51, 52, 53})), expected);
  EXPECT_TRUE(eventually([this] {
    static_cast<void>(engine->poll());
    return stat("loads_out_of_service") == 1;
  }));
  EXPECT_EQ(engine->roots_out_of_service(), std::vector<std::size_t>{0});
  disk->release();
}

TEST_P(RootsTest, ReadsOfOneThatHangsLeaveSlabsForTheOther) {
  options.load_depth = 2 * slab_bytes_of(options);  // four of fifteen slabs at once
  start();
  const std::vector<std::uint64_t> first = keys_of(0, 20);
  const std::uint64_t second = keys_of(1, 1)[0];
  for (const std::uint64_t k : first) store(k, ids({0, 1, 2, 3}));
  store(second, ids({4, 5, 6, 7}));
  start();
  disk->hold(OperationKind::kRead);
  std::vector<LoadChunk> many;
  for (std::uint32_t i = 0; i < first.size(); ++i) {
    many.push_back(chunk(first[i], blocks_from(40 + 4 * i)));
  }
  engine->load(std::move(many), 0);
  EXPECT_LE(stat("slabs_in_use"), 4U);
  engine->load({chunk(second, ids({30, 31, 32, 33}))}, 0);
  EXPECT_TRUE(eventually([this] { return stat("chunks_loaded") == 1; }));
  disk->release();
  finish();
}

TEST_P(RootsTest, StoresGoOnWhileAnotherRootHangsWithLoadsQueued) {
  options.load_depth = 2 * slab_bytes_of(options);
  start();
  const std::vector<std::uint64_t> first = keys_of(0, 20);
  for (const std::uint64_t k : first) store(k, ids({0, 1, 2, 3}));
  start();
  disk->hold(OperationKind::kRead);
  std::vector<LoadChunk> many;
  for (std::uint32_t i = 0; i < first.size(); ++i) {
    many.push_back(chunk(first[i], blocks_from(40 + 4 * i)));
  }
  engine->load(std::move(many), 0);
  EXPECT_TRUE(engine->store(key(keys_of(1, 1)[0]), 0, ids({0, 1, 2, 3}), 0))
      << "they wait for their disk, not for a slab";
  EXPECT_TRUE(eventually([this] { return stat("chunks_stored") == 1; }));
  disk->release();
  finish();
}

TEST_P(RootsTest, AStoreThatIsDroppedUsesUpNoTrial) {
  options.host_memory = 2 * slab_bytes_of(options);
  std::atomic<bool> failing{false};
  start([&](Operation& operation) -> std::optional<int> {
    const bool creates = operation.kind == OperationKind::kOpen && (operation.flags & O_CREAT) != 0;
    return creates && failing ? std::optional(-EROFS) : std::nullopt;
  });
  const std::vector<std::uint64_t> keys = keys_of(0, 6);
  for (std::size_t i = 0; i < 2; ++i) store(keys[i], ids({0, 1, 2, 3}));
  failing = true;
  for (std::size_t i = 2; i < 5; ++i) {
    ASSERT_TRUE(engine->store(key(keys[i]), 0, ids({0, 1, 2, 3}), 0));
    finish();
  }
  ASSERT_EQ(stat("stores_out_of_service"), 1U);
  failing = false;
  device->hold();  // both slabs are in use
  for (std::uint32_t i = 0; i < 2; ++i) engine->load({chunk(keys[i], blocks_from(40 + 4 * i))}, 0);
  EXPECT_TRUE(eventually([this] { return device->held() == 2; }));
  std::this_thread::sleep_for(2100ms);  // a trial is due
  EXPECT_FALSE(engine->store(key(keys[5]), 0, ids({0, 1, 2, 3}), 0));
  EXPECT_EQ(stat("stores_dropped"), 1U);
  device->release();
  finish();
  EXPECT_TRUE(engine->store(key(keys[5]), 0, ids({0, 1, 2, 3}), 0));
  finish();
  EXPECT_EQ(stat("stores_out_of_service"), 0U);
}

TEST_P(RootsTest, AFileThatIsThereSaysNothingOfWriting) {
  std::atomic<bool> failing{false};
  start([&](Operation& operation) -> std::optional<int> {
    const bool creates = operation.kind == OperationKind::kOpen && (operation.flags & O_CREAT) != 0;
    return creates && failing ? std::optional(-EROFS) : std::nullopt;
  });
  const std::vector<std::uint64_t> keys = keys_of(0, 5);
  store(keys[0], ids({0, 1, 2, 3}));
  failing = true;
  for (std::size_t i = 1; i <= 3; ++i) {
    ASSERT_TRUE(engine->store(key(keys[i]), 0, ids({0, 1, 2, 3}), 0));
    ASSERT_TRUE(engine->store(key(keys[0]), keys[0] * 64, ids({0, 1, 2, 3}), 0));
    finish();
  }
  EXPECT_EQ(stat("stores_out_of_service"), 1U);
}

INSTANTIATE_TEST_SUITE_P(Both, RootsTest, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
