// A run of a real engine on a real disk, recorded, and the trees that a crash of its machine may
// have left, each opened by a new engine.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "crash_model.hpp"
#include "engine/engine.hpp"
#include "fault_engine.hpp"
#include "paged_kv.hpp"
#include "store/evictor.hpp"
#include "store/inspection.hpp"

namespace lmkv::test {

// How the run was made: its I/O engine, when it renames, how it writes.
using RunParameter = std::tuple<IoEngineChoice, Publish, DirectIoChoice>;

class PowerLoss : public ::testing::TestWithParam<RunParameter>, protected PagedKv {
 protected:
  static constexpr std::uint32_t kChunks = 8;  // chunk k is blocks 4k.., and is loaded to 32 + 4k..
  // Longer than a dead writer's file is left alone.
  static constexpr std::chrono::hours kOff{3};

  PowerLoss() {
    options.direct_io = std::get<2>(GetParam());
    options.free_space_floor = 0;  // of whatever disk this is
    for (std::uint32_t k = 0; k < kChunks; ++k) {
      ChunkIdentity identity;
      identity.namespace_digest = options.namespace_digest;
      identity.key = key(k);
      identity.token_begin = k * 64;
      identity.block_tokens = options.block_tokens;
      identity.block_count = kBlocksPerChunk;
      identity.block_bytes = kLayers * kPage;
      const std::vector<std::byte> payload = bytes_of(source(k));
      std::vector<std::byte>& file = truth.emplace_back(identity.file_bytes());
      std::ranges::copy(payload, file.begin() + kHeaderBytes);
      seal_chunk(file, identity);
      payload_end = kHeaderBytes + payload.size();
    }
  }

  // ---- The run

  // One chunk, the first in its directory.
  void record_the_first_store() {
    write_file(root / "photo.jpg", truth[7]);  // somebody else's
    before = DiskImage::of(root.path());
    std::unique_ptr<Engine> engine = recording_engine();
    std::vector<std::string> made = paths(root).directories_for(key(0));
    made.pop_back();
    for (const std::string& path : made) recorder.note(OperationKind::kMakeDirectory, path);
    wanted = {0};
    store(*engine, wanted);
    engine.reset();
    trace = recorder.trace();
  }

  // A load, a bad file that is removed and replaced, another that is replaced at once, three stores
  // together, one that fails in the middle, an eviction.
  void record_a_life() {
    {
      Engine earlier(options, make_parts(options));
      store(earlier, {0, 1, 2, 3});
    }
    std::filesystem::resize_file(path_of(3), truth[3].size() / 2);
    std::vector<std::byte> damaged = truth[2];
    damaged[payload_end / 2] ^= std::byte{1};
    write_file(path_of(2), damaged);
    const std::filesystem::path beside = std::filesystem::path(path_of(0)).parent_path();
    for (const std::string& theirs :
         {root / "photo.jpg", root / "v1/notes.txt", paths(root).temporary_directory() + "/a-b-c",
          (beside / "host-1-notes").string()}) {
      write_file(theirs, truth[7]);
    }
    before = DiskImage::of(root.path());

    std::unique_ptr<Engine> engine = recording_engine();
    engine->load({load_of(0), load_of(2)}, 0);
    EXPECT_TRUE(engine->drain(std::chrono::seconds(60)));
    store(*engine, {2, 3, 4, 5, 6});
    writes_fail = true;
    store(*engine, {7}, "write");
    EXPECT_EQ(engine->stats().at("chunks_bad_removed"), 1U);
    EXPECT_EQ(engine->stats().at("chunks_stored"), 5U);
    // That of the bad chunk comes before its file is removed, or finds none.
    EXPECT_TRUE(eventually([&] { return engine->stats().at("chunks_touched") >= 1; }));
    engine.reset();
    EXPECT_EQ(count_temporaries(root.path()), 0U);
    Candidate oldest;
    oldest.key = key(1);
    oldest.rank = rank_name();
    oldest.modified_ns = modified_ns(path_of(1));
    EXPECT_EQ(evict(root.path(), oldest, std::numeric_limits<std::int64_t>::max()),
              Eviction::kEvicted);
    recorder.note(OperationKind::kUnlink, path_of(1));
    trace = recorder.trace();
    EXPECT_EQ(DiskImage::of(root.path()).fingerprint(), rebuild(trace, before, all()).fingerprint())
        << "something was done to the disk that was not recorded";
  }

  // Everything that was done until then.
  [[nodiscard]] Survival all() const {
    Survival survival;
    survival.moment = trace.moments;
    survival.process_only = true;
    return survival;
  }

  // ---- What is left of it

  struct Tally {
    std::size_t trees = 0;
    std::size_t loaded = 0;
    std::size_t missing = 0;
    std::size_t bad = 0;
    std::size_t torn = 0;  // of these: they were written by the run
    std::size_t half_written = 0;
  };

  // Opens the tree as engines do after a crash: what they load is right, what they cannot load they
  // store again, and in the end there is nothing but whole chunks and what is not ours.
  void open(const DiskImage& tree, bool may_be_torn) {
    tree.write_to(ground.path(), kOff);
    std::size_t half_written = 0;
    for (const auto& [path, file] : tree.files) {
      half_written += is_unfinished_name(path.substr(path.rfind('/') + 1)) ? 1 : 0;
    }
    tally.half_written += half_written;
    const bool stores_first = ++tally.trees % 4 == 0;
    if (stores_first) {
      const std::unique_ptr<Engine> engine = new_engine();
      expect_swept(*engine, half_written);
      half_written = 0;
      store(*engine, wanted);
    }
    const DiskImage found = DiskImage::of(ground.path());
    count_torn(found, may_be_torn);
    {
      const std::unique_ptr<Engine> engine = new_engine();
      load_and_expect(*engine, found);
      expect_swept(*engine, half_written);
      store(*engine, wanted);
    }
    expect_healed();
    if (tally.trees % 16 != 0) return;
    const std::unique_ptr<Engine> engine = new_engine();
    load_and_expect(*engine, DiskImage::of(ground.path()));
    EXPECT_EQ(engine->stats().at("chunks_loaded"), wanted.size());
  }

  [[nodiscard]] std::string relative(std::uint32_t k) const {
    return std::filesystem::path(path_of(k)).lexically_relative(root.path());
  }

  TemporaryDirectory root;
  TemporaryDirectory ground{fast_place()};
  EngineOptions options = options_of(root.path(), std::get<0>(GetParam()));
  std::vector<std::vector<std::byte>> truth;  // the files, as they should be
  std::size_t payload_end = 0;                // of each; the padding behind it is nobody's
  DiskImage before;
  Trace trace;
  std::vector<std::uint32_t> wanted = {0, 1, 2, 3, 4, 5, 6, 7};  // of the engines that open a tree
  Tally tally;

 private:
  static std::filesystem::path fast_place() {
    const std::filesystem::path memory = "/dev/shm";
    return ::access(memory.c_str(), W_OK) == 0 ? memory : std::filesystem::current_path();
  }
  static ChunkKey key(std::uint32_t k) { return digest_of<ChunkKey>(k + 1); }
  static std::vector<BlockId> source(std::uint32_t k) { return blocks_from(k * kBlocksPerChunk); }
  static std::vector<BlockId> target(std::uint32_t k) {
    return blocks_from(static_cast<std::uint32_t>(kBlocks) / 2 + k * kBlocksPerChunk);
  }
  static LoadChunk load_of(std::uint32_t k) {
    return {key(k), k * 64, kBlocksPerChunk, 0, target(k)};
  }
  [[nodiscard]] ChunkPaths paths(const TemporaryDirectory& where) const {
    return {where.path(), options.namespace_digest, options.rank};
  }
  [[nodiscard]] std::string path_of(std::uint32_t k) const { return paths(root).chunk(key(k)); }

  std::unique_ptr<Engine> recording_engine() {
    EngineParts parts = make_parts(options);
    parts.roots[0].probe.publish = std::get<1>(GetParam());
    std::unique_ptr<IoEngine>& io_engine = parts.roots[0].io_engine;
    io_engine = std::make_unique<RecordingEngine>(std::move(io_engine), recorder);
    // Above the recorder: what fails does not reach the disk.
    const auto fail = [this, writes = 0](Operation& operation) mutable -> std::optional<int> {
      if (!writes_fail || operation.kind != OperationKind::kWrite || ++writes < 3) return {};
      return -EIO;
    };
    io_engine = std::make_unique<FaultEngine>(std::move(io_engine), fail);
    return std::make_unique<Engine>(options, std::move(parts));
  }

  // Both I/O engines, with O_DIRECT and without, in turn.
  std::unique_ptr<Engine> new_engine() {
    EngineOptions now = options;
    now.roots = {ground.path()};
    now.io_engine = engines[++engines_made % engines.size()];
    now.direct_io = engines_made % 3 == 0 ? DirectIoChoice::kOff : DirectIoChoice::kAuto;
    return std::make_unique<Engine>(now, make_parts(now));
  }

  // `error`: the beginning of what the stores end with.
  void store(Engine& engine, const std::vector<std::uint32_t>& chunks,
             const std::string& error = "") {
    const auto used = std::chrono::system_clock::now() - std::chrono::minutes(3);
    for (const std::uint32_t k : chunks) {
      EXPECT_TRUE(engine.store(key(k), k * 64, source(k), 0, used)) << k;
    }
    EXPECT_TRUE(engine.drain(std::chrono::seconds(60)));
    for (const Completion& done : engine.poll()) {
      if (done.kind != CompletionKind::kStored) continue;
      EXPECT_TRUE(done.error.starts_with(error) && done.error.empty() == error.empty())
          << done.error;
    }
  }

  [[nodiscard]] bool is_whole(const DiskImage& tree, std::uint32_t k) const {
    const auto found = tree.files.find(relative(k));
    if (found == tree.files.end() || found->second.bytes.size() != truth[k].size()) return false;
    return std::equal(truth[k].begin(), truth[k].begin() + static_cast<std::ptrdiff_t>(payload_end),
                      found->second.bytes.begin());
  }

  void count_torn(const DiskImage& tree, bool may_be_torn) {
    for (const std::uint32_t k : wanted) {
      const auto found = tree.files.find(relative(k));
      if (found == tree.files.end() || is_whole(tree, k)) continue;
      const auto earlier = before.files.find(relative(k));
      if (earlier != before.files.end() && earlier->second.bytes == found->second.bytes) continue;
      ++tally.torn;
      EXPECT_TRUE(may_be_torn) << "chunk " << k << " has its name and is not whole";
    }
  }

  // Every chunk that is whole is loaded, and no byte of any other.
  void load_and_expect(Engine& engine, const DiskImage& tree) {
    const RankName rank = rank_name();
    std::vector<LoadChunk> chunks;
    for (const std::uint32_t k : wanted) {
      const Inspection seen = inspect_chunk(ground.path(), rank, key(k), Inspect::kHeaderAndBlocks);
      const bool there = tree.files.contains(relative(k));
      EXPECT_EQ(seen.finding, is_whole(tree, k) ? Finding::kSound
                              : there           ? Finding::kBad
                                                : Finding::kGone)
          << "what lmkv verify says of chunk " << k << ": " << seen.text;
      poison(target(k));
      chunks.push_back(load_of(k));
    }
    engine.load(std::move(chunks), 0);
    EXPECT_TRUE(engine.drain(std::chrono::seconds(60)));
    const std::vector<Completion> done = engine.poll();
    ASSERT_EQ(done.size(), 1U);
    std::size_t missing = 0;
    std::size_t bad = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const std::uint32_t k = wanted[i];
      const bool whole = is_whole(tree, k);
      const bool failed = std::ranges::count(done[0].failed_chunks, i) == 1;
      EXPECT_EQ(failed, !whole) << k << ": " << done[0].error;
      if (whole) {
        EXPECT_TRUE(bytes_of(target(k)) == bytes_of(source(k))) << "wrong bytes, chunk " << k;
        continue;
      }
      EXPECT_TRUE(
          std::ranges::all_of(bytes_of(target(k)), [](std::byte b) { return b == kPoison; }))
          << "bytes of a chunk that failed, " << k;
      ++(tree.files.contains(relative(k)) ? bad : missing);
      EXPECT_FALSE(std::filesystem::exists(ground / relative(k))) << k;
    }
    const auto stats = engine.stats();
    EXPECT_EQ(stats.at("chunks_missing"), missing);
    EXPECT_EQ(stats.at("chunks_bad"), bad);
    EXPECT_EQ(stats.at("chunks_bad_removed"), bad);
    EXPECT_EQ(stats.at("loads_failed"), missing + bad);
    EXPECT_EQ(stats.at("loads_out_of_service"), 0U);
    tally.loaded += wanted.size() - missing - bad;
    tally.missing += missing;
    tally.bad += bad;
  }

  static void expect_swept(const Engine& engine, std::size_t half_written) {
    EXPECT_TRUE(eventually([&] { return engine.stats().at("housekeeping_passes") > 0; }));
    EXPECT_EQ(engine.stats().at("temporaries_removed"), half_written);
    EXPECT_EQ(engine.stats().at("housekeeping_failures"), 0U);
  }

  void expect_healed() {
    DiskImage expected;
    for (const std::uint32_t k : wanted) expected.files[relative(k)].bytes = truth[k];
    for (const auto& [path, file] : before.files) expected.files.try_emplace(path, file);
    const DiskImage found = DiskImage::of(ground.path());
    for (const auto& [path, file] : found.files) {
      EXPECT_TRUE(expected.files.contains(path)) << path << " is left";
    }
    for (const auto& [path, file] : expected.files) {
      const auto there = found.files.find(path);
      ASSERT_NE(there, found.files.end()) << path;
      // A chunk's padding may be anything: a reader looks at none of it.
      const std::size_t end = path.ends_with(".kv") ? payload_end : file.bytes.size();
      EXPECT_EQ(there->second.bytes.size(), file.bytes.size()) << path;
      EXPECT_TRUE(std::equal(file.bytes.begin(),
                             file.bytes.begin() + static_cast<std::ptrdiff_t>(end),
                             there->second.bytes.begin()))
          << path;
    }
  }

  [[nodiscard]] RankName rank_name() const {
    RankName rank;
    std::ranges::copy_n(options.namespace_digest.hex().begin(), 16, rank.namespace16.begin());
    return rank;
  }

  Recorder recorder{root.path()};
  std::atomic<bool> writes_fail{false};
  const std::vector<IoEngineChoice> engines = usable_engines();
  std::size_t engines_made = 0;
};

}  // namespace lmkv::test
