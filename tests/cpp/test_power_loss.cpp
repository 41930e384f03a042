// Power loss: the operations of real runs are recorded, and thousands of the trees that a disk may
// hold after a crash are rebuilt from them and opened (crash_model.hpp says which those are).
#include <gtest/gtest.h>

#include <array>
#include <iostream>
#include <set>

#include "power_loss.hpp"

namespace lmkv::test {
namespace {

// One tree in so many is opened.
#if defined(__SANITIZE_THREAD__)
constexpr std::size_t kShare = 30;
#elif defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kShare = 10;
#else
constexpr std::size_t kShare = 1;
#endif
constexpr std::size_t kTrees = 300 / kShare;  // of each life

std::string run_name(const ::testing::TestParamInfo<RunParameter>& info) {
  const auto [engine, publish, direct] = info.param;
  return std::string(engine == IoEngineChoice::kUring ? "io_uring" : "threads") +
         (publish == Publish::kRename ? "_rename" : "_sync_then_rename") +
         (direct == DirectIoChoice::kOff ? "_buffered" : "_direct");
}

// Answers that depend on the question and a seed alone: each may be asked for several times.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : seed_(seed) {}

  // 0 to 1.
  [[nodiscard]] double roll(std::uint64_t about, std::uint64_t which = 0) const {
    const std::array<std::uint64_t, 3> question = {seed_, about, which};
    constexpr double kRange = 18446744073709551616.0;
    return static_cast<double>(xxh3(question.data(), sizeof question)) / kRange;
  }
  [[nodiscard]] std::size_t below(std::size_t limit, std::uint64_t about,
                                  std::uint64_t which = 0) const {
    const auto number = static_cast<std::size_t>(roll(about, which) * static_cast<double>(limit));
    return std::min(number, limit - 1);
  }

 private:
  std::uint64_t seed_;
};

enum About : std::uint64_t {
  kMoment,
  kRules,
  kPosition,
  kShareOfSteps,
  kStep,
  kOldName,
  kTear,
  kShape,
  kShareOfData,
  kCut,
  kSectorKept,
  kContent,
  kResizes,
  kSize,
};

// Index of the step that the last sync before `moment` was.
std::size_t last_sync(const Trace& trace, std::size_t moment) {
  std::size_t last = 0;
  for (std::size_t i = 0; i < trace.steps.size(); ++i) {
    const Step& step = trace.steps[i];
    if (step.kind == OperationKind::kSync && step.completed < moment) last = i;
  }
  return last;
}

class PowerLossTest : public PowerLoss {
 protected:
  PowerLossTest() { fill_random(garbage_, 77); }

  // What sectors hold that were never written: zeros, anything, or another chunk's.
  std::function<void(int, std::span<std::byte>)> contents(const Dice& dice) const {
    return [this, dice](int file, std::span<std::byte> bytes) {
      const auto number = static_cast<std::uint64_t>(file);
      const std::size_t kind = dice.below(4, kContent, number);
      if (kind == 0) return;
      const std::vector<std::byte>& from =
          kind == 1 ? garbage_ : truth[dice.below(kChunks, kContent, 1000 + number)];
      std::copy_n(from.begin(), std::min(bytes.size(), from.size()), bytes.begin());
    };
  }

  [[nodiscard]] Survival random_survival(std::uint64_t seed) const {
    const Dice dice(seed);
    Survival survival;
    survival.moment = 1 + dice.below(trace.moments, kMoment);
    survival.process_only = dice.roll(kRules) < 0.15;
    if (dice.roll(kRules, 1) < 0.6) {
      // A journal: names, sizes and times in order. A sync makes it write all that is behind it.
      const std::size_t first = last_sync(trace, survival.moment);
      const bool all = dice.roll(kPosition, 1) < 0.4;
      const std::size_t last =
          all ? trace.steps.size() : first + dice.below(trace.steps.size() - first, kPosition);
      survival.keeps = [last](std::size_t i) { return i <= last; };
    } else {
      const double share = std::array{0.1, 0.5, 0.9}[dice.below(3, kShareOfSteps)];
      survival.keeps = [=](std::size_t i) { return dice.roll(kStep, i) < share; };
      survival.takes_old_name = [=](std::size_t i) { return dice.roll(kOldName, i) < share; };
    }
    survival.keeps_sector = [this, dice](std::size_t i, std::size_t offset) {
      const auto file = static_cast<std::uint64_t>(trace.steps[i].file);
      const std::size_t tear = std::array{kSector, kPageBytes, kPageBytes}[dice.below(3, kTear)];
      const double share =
          std::array{0.0, 0.5, 0.9, 0.99, 1.0, 1.0}[dice.below(6, kShareOfData, file)];
      const std::size_t cut = dice.below(truth[0].size() + 1, kCut, file) / tear * tear;
      switch (dice.below(4, kShape, file)) {
        case 0: return offset < cut;
        case 1: return offset >= cut;
        default: return dice.roll(kSectorKept, file << 32 | offset / tear) < share;
      }
    };
    survival.fill = contents(dice);
    survival.resize = [dice](int file, std::size_t size) {
      const auto number = static_cast<std::uint64_t>(file);
      if (size == 0 || survival_keeps_size(dice, number)) return size;
      return dice.below(size + 1, kSize, number) / kSector * kSector;
    };
    if (survival.process_only) survival.resize = nullptr;
    return survival;
  }

  static bool survival_keeps_size(const Dice& dice, std::uint64_t file) {
    return dice.roll(kResizes, file) >= 0.15;
  }

  // Whether to go on: a tree that was opened already is not opened again.
  bool open_once(const Survival& survival) {
    const DiskImage tree = rebuild(trace, before, survival);
    if (!seen_.insert(tree.fingerprint()).second) return true;
    if (seen_.size() % share_ != 0) return true;
    const bool synced = std::get<1>(GetParam()) == Publish::kSyncThenRename;
    open(tree, !synced && !survival.process_only);
    return !HasFailure();
  }

  void report() const {
    std::cout << tally.trees << " trees: " << tally.loaded << " chunks loaded, " << tally.missing
              << " missing, " << tally.bad << " bad (" << tally.torn << " of the run), "
              << tally.half_written << " half written\n";
  }

  std::size_t share_ = 1;
  std::vector<std::byte> garbage_ = std::vector<std::byte>(1 << 17);
  std::set<std::uint64_t> seen_;
};

TEST_P(PowerLossTest, AnyTreeThatALifeMayLeaveBehindIsReadRightlyAndHealed) {
  record_a_life();
  ASSERT_FALSE(HasFailure());
  for (std::uint64_t seed = 0; tally.trees < kTrees && seed < 4 * kTrees; ++seed) {
    const ::testing::ScopedTrace which(__FILE__, __LINE__, "seed " + std::to_string(seed));
    if (!open_once(random_survival(seed))) break;
  }
  report();
  const bool synced = std::get<1>(GetParam()) == Publish::kSyncThenRename;
  EXPECT_EQ(tally.trees, kTrees);
  if (kShare > 1) return;  // too few for certain
  EXPECT_GT(tally.loaded, tally.trees);
  EXPECT_GT(tally.missing, tally.trees);
  EXPECT_GT(tally.bad, tally.torn);
  EXPECT_EQ(tally.torn > 0, !synced);
  EXPECT_GT(tally.half_written, tally.trees / 2);
}

// One store from its first directory on: every part of it there and lost.
class OneStore : public PowerLossTest {
 protected:
  OneStore() { share_ = kShare; }

  // The writes that are there are the bits of `writes`.
  [[nodiscard]] Survival all_but(std::size_t moment, std::uint32_t writes) const {
    Survival survival;
    survival.moment = moment;
    survival.keeps = [](std::size_t) { return true; };
    survival.keeps_sector = [this, writes](std::size_t i, std::size_t) {
      return (writes >> (trace.steps[i].offset / options.request_bytes) & 1U) != 0;
    };
    return survival;
  }
  [[nodiscard]] Survival with_sectors(std::function<bool(std::size_t)> there,
                                      std::size_t contents_seed) const {
    Survival survival = all_but(trace.moments, ~0U);
    survival.keeps_sector = [there = std::move(there)](std::size_t, std::size_t offset) {
      return there(offset);
    };
    survival.fill = contents(Dice(contents_seed));
    return survival;
  }
  [[nodiscard]] std::size_t changes() const { return trace.steps.size(); }
};

TEST_P(OneStore, AnyPartOfItMayBeLost) {
  record_the_first_store();
  ASSERT_FALSE(HasFailure());
  const std::size_t size = truth[0].size();
  const std::size_t requests = size / options.request_bytes;
  ASSERT_EQ(requests, 4U);

  // At any moment, with any head of the journal and any of the requests.
  for (std::size_t moment = 1; moment <= trace.moments; ++moment) {
    for (std::size_t last = last_sync(trace, moment); last < changes(); ++last) {
      for (std::uint32_t writes = 0; writes < 1U << requests; ++writes) {
        Survival survival = all_but(moment, writes);
        survival.keeps = [last](std::size_t i) { return i <= last; };
        ASSERT_TRUE(open_once(survival)) << moment << " " << last << " " << writes;
        survival.process_only = true;
        ASSERT_TRUE(open_once(survival)) << moment << " " << last << " " << writes;
      }
    }
  }
  // Any of the names, sizes and times, in any order, with all of the data and with none.
  std::vector<std::size_t> names;
  for (std::size_t i = 0; i < changes(); ++i) {
    const Step& step = trace.steps[i];
    if (!step.is_data() && step.kind != OperationKind::kSync) names.push_back(i);
  }
  const auto bit_of = [&](std::size_t i) {
    return static_cast<std::size_t>(std::ranges::find(names, i) - names.begin());
  };
  for (std::size_t kept = 0; kept < std::size_t{1} << (names.size() + 1); ++kept) {
    for (const std::uint32_t writes : {0U, ~0U}) {
      Survival survival = all_but(trace.moments, writes);
      survival.keeps = [&](std::size_t i) {
        return trace.steps[i].is_data() ? writes != 0 : (kept >> bit_of(i) & 1U) != 0;
      };
      survival.takes_old_name = [&](std::size_t) { return (kept >> names.size() & 1U) != 0; };
      ASSERT_TRUE(open_once(survival)) << kept << " " << writes;
    }
  }
  // All but one sector, or one page; up to a sector; from a page on; cut short.
  for (std::size_t at = 0; at < size; at += kSector) {
    for (const std::size_t seed : {0U, 1U, 2U, 3U}) {
      ASSERT_TRUE(open_once(with_sectors(
          [at](std::size_t offset) { return offset / kSector != at / kSector; }, seed)));
      ASSERT_TRUE(open_once(with_sectors([at](std::size_t offset) { return offset < at; }, seed)));
      if (at % kPageBytes != 0) continue;
      ASSERT_TRUE(open_once(with_sectors(
          [at](std::size_t offset) { return offset / kPageBytes != at / kPageBytes; }, seed)));
      ASSERT_TRUE(open_once(with_sectors([at](std::size_t offset) { return offset >= at; }, seed)));
    }
    Survival survival = all_but(trace.moments, ~0U);
    survival.resize = [at](int, std::size_t) { return at; };
    ASSERT_TRUE(open_once(survival));
  }
  report();
  const bool synced = std::get<1>(GetParam()) == Publish::kSyncThenRename;
  EXPECT_GE(tally.trees, (synced ? 20U : 1000U) / kShare);
  EXPECT_EQ(tally.torn > 0, !synced);
}

const auto kPublishes = ::testing::Values(Publish::kRename, Publish::kSyncThenRename);

INSTANTIATE_TEST_SUITE_P(Runs, PowerLossTest,
                         ::testing::Combine(::testing::ValuesIn(usable_engines()), kPublishes,
                                            ::testing::Values(DirectIoChoice::kAuto,
                                                              DirectIoChoice::kOff)),
                         run_name);
// A single store is the same for all of them.
INSTANTIATE_TEST_SUITE_P(Runs, OneStore,
                         ::testing::Combine(::testing::Values(usable_engines().front()), kPublishes,
                                            ::testing::Values(DirectIoChoice::kAuto)),
                         run_name);

}  // namespace
}  // namespace lmkv::test
