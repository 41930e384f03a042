// Every fault of the disk, in every operation of a store and of a load, with both I/O engines: each
// ends in a correct answer or a clean miss, and leaves nothing behind.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <thread>

#include "chunk_tree.hpp"
#include "engine/engine.hpp"
#include "fault_cells.hpp"
#include "io/fault_engine.hpp"
#include "paged_kv.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;
using test::blocks_from;
using test::Cell;
using test::digest_of;
using test::End;
using test::kBlocksPerChunk;
using test::kChunks;
using test::kPoison;

constexpr std::uint32_t kTargets = 32;  // chunk k is made of blocks 4k.., and loaded to 32 + 4k..

using Parameter = std::tuple<Cell, IoEngineChoice>;

std::string cell_name(const ::testing::TestParamInfo<Parameter>& info) {
  const auto& [cell, choice] = info.param;
  return cell.name + (choice == IoEngineChoice::kUring ? "_io_uring" : "_threads");
}

class FaultMatrix : public ::testing::TestWithParam<Parameter>, protected test::PagedKv {
 protected:
  FaultMatrix() : cell(std::get<Cell>(GetParam())) {
    options.io_threads = 2;
    options.direct_io = cell.direct_io;
  }

  // A new engine, so that nothing is in memory, and counters begin at nought.
  void start(const std::string& spec) {
    engine.reset();
    asked_stores = asked_loads = 0;
    hangs = spec.find("hang") != std::string::npos;
    faults = std::make_shared<Faults>(parse_faults(spec), 1);
    options.access = spec.find("chmod.") == std::string::npos ? Access::kPrivate : Access::kGroup;
    EngineParts parts = make_parts(options);
    if (spec.starts_with("sync.")) parts.roots[0].probe.publish = Publish::kSyncThenRename;
    std::unique_ptr<IoEngine>& io_engine = parts.roots[0].io_engine;
    io_engine = make_fault_engine(std::move(io_engine), faults);
    engine = std::make_unique<Engine>(options, std::move(parts));
  }

  static ChunkKey key(std::uint32_t k) { return digest_of<ChunkKey>(k + 1); }
  static std::vector<BlockId> source(std::uint32_t k) { return blocks_from(k * kBlocksPerChunk); }
  static std::vector<BlockId> target(std::uint32_t k) {
    return blocks_from(kTargets + k * kBlocksPerChunk);
  }
  [[nodiscard]] ChunkPaths paths() const {
    return {root.path(), options.namespace_digest, options.rank};
  }
  [[nodiscard]] bool file_is_there(std::uint32_t k) const {
    return std::filesystem::exists(paths().chunk(key(k)));
  }
  [[nodiscard]] std::size_t temporaries() const {
    return test::count_temporaries(paths().rank_directory());
  }

  bool is_untouched(const std::vector<BlockId>& blocks) {
    return std::ranges::all_of(bytes_of(blocks), [](std::byte byte) { return byte == kPoison; });
  }

  void store_all() {
    const auto used = std::chrono::system_clock::now() - 3min;  // a load's touch changes the file
    for (std::uint32_t k = 0; k < kChunks; ++k) {
      ++asked_stores;
      EXPECT_TRUE(engine->store(key(k), k * 64, source(k), 0, used));
    }
  }
  void load_all() {
    for (std::uint32_t i = kTargets; i < test::kBlocks; ++i) poison({BlockId{i}});
    std::vector<LoadChunk> chunks;
    for (std::uint32_t k = 0; k < kChunks; ++k) {
      ++asked_loads;
      chunks.push_back({key(k), k * 64, kBlocksPerChunk, 0, target(k)});
    }
    engine->load(std::move(chunks), 0);
  }

  // What hangs is let go, once it is certain that it hung.
  std::vector<Completion> finish() {
    if (std::exchange(hangs, false)) {
      EXPECT_TRUE(test::eventually([&] { return faults->hanging() > 0; }));
      EXPECT_FALSE(engine->drain(30ms)) << "what hangs has ended";
      faults->change({});
      faults->release();
    }
    EXPECT_TRUE(engine->drain(60s)) << "a job is lost";
    return engine->poll();
  }

  void expect_faults_happened() {
    if (cell.end == End::kEither) {  // which of them is left to chance
      EXPECT_FALSE(faults->counts().empty());
      return;
    }
    for (const Fault& fault : parse_faults(cell.spec)) {
      EXPECT_TRUE(test::eventually([&] { return faults->count(fault.kind) > 0; }))
          << name_of(fault.kind);
    }
  }

  // Nothing is held, nothing is lost, and every chunk that was asked for is in one counter.
  void expect_nothing_left() {
    const auto stats = engine->stats();
    EXPECT_EQ(stats.at("jobs_in_flight"), 0U);
    EXPECT_EQ(stats.at("slabs_in_use"), 0U);
    EXPECT_EQ(stats.at("slabs_free") + stats.at("slabs_cached"), stats.at("slabs_total"));
    EXPECT_EQ(stats.at("load_bytes_in_flight"), 0U);
    EXPECT_EQ(stats.at("store_bytes_in_flight"), 0U);
    std::uint64_t stores = stats.at("chunks_stored") + stats.at("stores_already_present") +
                           stats.at("stores_failed") + stats.at("gathers_failed");
    for (const auto& [name, count] : stats) {
      if (name.starts_with("stores_dropped")) stores += count;  // for whatever reason
    }
    EXPECT_EQ(stores, asked_stores);
    EXPECT_EQ(stats.at("chunks_loaded") + stats.at("loads_failed") + stats.at("loads_cancelled"),
              asked_loads);
    EXPECT_LE(stats.at("chunks_missing") + stats.at("chunks_bad"), stats.at("loads_failed"));
  }

  const Cell cell;
  const std::size_t descriptors = test::open_descriptors();
  test::TemporaryDirectory root;
  EngineOptions options = options_of(root.path(), std::get<IoEngineChoice>(GetParam()));
  std::uint64_t asked_stores = 0;
  std::uint64_t asked_loads = 0;
  bool hangs = false;
  std::shared_ptr<Faults> faults;
  std::unique_ptr<Engine> engine;
};

// ---- Stores

class StoreUnder : public FaultMatrix {
 protected:
  void expect_loadable_by_another_engine(bool bad) {
    start("");
    load_all();
    const std::vector<Completion> done = finish();
    ASSERT_EQ(done.size(), 1U);
    EXPECT_EQ(done[0].failed_chunks.size(), bad ? kChunks : 0) << done[0].error;
    for (std::uint32_t k = 0; k < kChunks; ++k) {
      if (bad) {
        EXPECT_TRUE(is_untouched(target(k)));
        EXPECT_FALSE(file_is_there(k));
      } else {
        EXPECT_EQ(bytes_of(target(k)), bytes_of(source(k)));
      }
    }
    EXPECT_EQ(engine->stats().at("chunks_bad_removed"), bad ? kChunks : 0U);
    expect_nothing_left();
  }
};

TEST_P(StoreUnder, Fault) {
  start(cell.spec);
  store_all();
  const std::vector<Completion> done = finish();
  ASSERT_EQ(done.size(), 2 * kChunks);
  std::size_t failed = 0;
  for (const Completion& completion : done) {
    const bool gathered = completion.kind == CompletionKind::kGathered;
    EXPECT_TRUE(!gathered || completion.error.empty()) << completion.error;
    failed += completion.error.empty() ? 0 : 1;
  }
  const auto stats = engine->stats();
  EXPECT_EQ(stats.at("stores_failed"), failed);
  EXPECT_EQ(stats.at("chunks_stored"), kChunks - failed);
  if (cell.end == End::kEither) {
    EXPECT_LE(temporaries(), failed);
  } else {
    EXPECT_EQ(failed, cell.end == End::kFailed ? kChunks : 0U);
    for (std::uint32_t k = 0; k < kChunks; ++k) EXPECT_EQ(file_is_there(k), failed == 0) << k;
    EXPECT_EQ(temporaries(), cell.temporaries);
    EXPECT_EQ(stats.at("touches_failed"), cell.touches_failed);
  }
  expect_faults_happened();
  expect_nothing_left();

  // When the cause is gone stores resume by themselves.
  faults->change({});
  store_all();
  for (const Completion& completion : finish()) EXPECT_EQ(completion.error, "");
  EXPECT_EQ(engine->stats().at("chunks_stored"), kChunks);
  EXPECT_EQ(engine->stats().at("stores_already_present"), kChunks - failed);
  expect_nothing_left();
  if (cell.end != End::kEither) expect_loadable_by_another_engine(cell.end == End::kBad);
  engine.reset();
  EXPECT_EQ(test::open_descriptors(), descriptors);
}

// ---- Loads

class LoadUnder : public FaultMatrix {
 protected:
  void expect_counters(std::size_t failed) {
    const auto stats = engine->stats();
    EXPECT_EQ(stats.at("chunks_loaded"), kChunks - failed);
    EXPECT_EQ(stats.at("loads_failed"), failed);
    if (cell.end == End::kEither) return;
    const bool bad = cell.end == End::kBad || cell.end == End::kStuck;
    EXPECT_EQ(failed, cell.end == End::kDone ? 0 : kChunks);
    EXPECT_EQ(stats.at("chunks_missing"), cell.end == End::kMissing ? kChunks : 0U);
    EXPECT_EQ(stats.at("chunks_bad"), bad ? kChunks : 0U);
    EXPECT_EQ(stats.at("chunks_bad_removed"), cell.end == End::kBad ? kChunks : 0U);
    // Nobody waits for a touch.
    EXPECT_TRUE(test::eventually([&] {
      return engine->stats().at("touches_failed") == cell.touches_failed;
    })) << engine->stats().at("touches_failed");
    for (std::uint32_t k = 0; k < kChunks; ++k) {
      EXPECT_EQ(file_is_there(k), cell.end != End::kBad) << k;
    }
  }
  // Each chunk is there, every byte, or it is reported and not a byte of it is.
  void expect_right_or_untouched(const std::vector<std::size_t>& failed) {
    for (std::uint32_t k = 0; k < kChunks; ++k) {
      if (std::ranges::find(failed, k) == failed.end()) {
        EXPECT_EQ(bytes_of(target(k)), bytes_of(source(k))) << k;
      } else {
        EXPECT_TRUE(is_untouched(target(k))) << k;
      }
    }
    EXPECT_TRUE(is_untouched(target(kChunks)));  // blocks that nobody asked for
  }
};

TEST_P(LoadUnder, Fault) {
  start("");
  store_all();
  EXPECT_TRUE(engine->drain(60s));
  start(cell.spec);
  load_all();
  const std::vector<Completion> done = finish();
  ASSERT_EQ(done.size(), 1U);
  const std::vector<std::size_t>& failed = done[0].failed_chunks;
  EXPECT_EQ(done[0].error.empty(), failed.empty());
  expect_right_or_untouched(failed);
  expect_counters(failed.size());
  expect_faults_happened();
  expect_nothing_left();

  // The cause is gone: what is there is loaded, and what was removed can be stored again.
  faults->change({});
  store_all();
  for (const Completion& completion : finish()) EXPECT_EQ(completion.error, "");
  load_all();
  EXPECT_TRUE(finish().at(0).failed_chunks.empty());
  expect_right_or_untouched({});
  expect_nothing_left();
  EXPECT_EQ(temporaries(), 0U);
  engine.reset();
  EXPECT_EQ(test::open_descriptors(), descriptors);
}

// ---- What hangs holds up nothing but itself

class Hanging : public FaultMatrix {};

TEST_P(Hanging, TheOtherDirectionGoesOnAndClosingLosesNoJob) {
  const bool stores_hang = cell.spec == "write.hang";
  start("");
  store_all();
  EXPECT_TRUE(engine->drain(60s));
  start(cell.spec);
  const ChunkKey other = digest_of<ChunkKey>(99);
  if (stores_hang) {
    ++asked_stores;
    ASSERT_TRUE(engine->store(other, 0, source(5), 0));
  } else {
    load_all();
  }
  ASSERT_TRUE(test::eventually([&] { return faults->hanging() > 0; }));
  if (stores_hang) {
    const std::filesystem::path place = paths().chunk(other);
    EXPECT_EQ(test::count_temporaries(place.parent_path()), 1U);
    load_all();
  } else {
    ++asked_stores;
    ASSERT_TRUE(engine->store(other, 0, source(5), 0));
  }
  std::vector<Completion> done;
  EXPECT_TRUE(test::eventually([&] {
    for (Completion& completion : engine->poll()) done.push_back(std::move(completion));
    return std::ranges::any_of(done, [&](const Completion& completion) {
      return completion.error.empty() &&
             completion.kind == (stores_hang ? CompletionKind::kLoaded : CompletionKind::kStored);
    });
  }));
  EXPECT_EQ(engine->stats().at("jobs_in_flight"), 1U);

  std::thread closer([this] { EXPECT_TRUE(engine->close(20s)); });
  std::this_thread::sleep_for(20ms);
  EXPECT_GT(faults->hanging(), 0U);
  faults->change({});
  faults->release();
  closer.join();
  expect_nothing_left();
  for (Completion& completion : engine->poll()) done.push_back(std::move(completion));
  EXPECT_EQ(done.size(), 3U);  // gathered, stored, loaded
  EXPECT_EQ(temporaries(), 0U);
  engine.reset();
  EXPECT_EQ(test::open_descriptors(), descriptors);
}

INSTANTIATE_TEST_SUITE_P(Matrix, Hanging,
                         ::testing::Combine(::testing::Values(test::cell("write.hang", End::kDone),
                                                              test::cell("read.hang", End::kDone)),
                                            ::testing::ValuesIn(test::usable_engines())),
                         cell_name);
INSTANTIATE_TEST_SUITE_P(Matrix, StoreUnder,
                         ::testing::Combine(::testing::ValuesIn(test::store_cells()),
                                            ::testing::ValuesIn(test::usable_engines())),
                         cell_name);
INSTANTIATE_TEST_SUITE_P(Matrix, LoadUnder,
                         ::testing::Combine(::testing::ValuesIn(test::load_cells()),
                                            ::testing::ValuesIn(test::usable_engines())),
                         cell_name);

}  // namespace
}  // namespace lmkv
