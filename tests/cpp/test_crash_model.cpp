#include <gtest/gtest.h>

#include "crash_model.hpp"

namespace lmkv::test {
namespace {

// A directory is made, and in it a file, which is written, synced or not, and renamed.
class CrashModelTest : public ::testing::Test {
 protected:
  void make(bool synced) {
    step(OperationKind::kMakeDirectory).path = "d";
    step(OperationKind::kOpen).path = "d/new";
    step(OperationKind::kAllocate).length = 3 * kSector;
    for (std::size_t i = 0; i < 3; ++i) {
      Step& write = step(OperationKind::kWrite);
      write.offset = i * kSector;
      write.bytes.assign(kSector, std::byte{7});
    }
    if (synced) step(OperationKind::kSync);
    rename_ = trace.steps.size();
    Step& rename = step(OperationKind::kRename);
    rename.path = "d/new";
    rename.target = "d/name";
    trace.files = 1;
    survival.moment = trace.moments;
    keep_names(true);
    survival.keeps_sector = [](std::size_t, std::size_t) { return false; };
  }
  Step& step(OperationKind kind) {
    Step& made = trace.steps.emplace_back();
    made.kind = kind;
    made.file = 0;
    made.submitted = trace.moments++;
    made.completed = trace.moments++;
    return made;
  }
  void keep_names(bool all) {
    survival.keeps = [all](std::size_t) { return all; };
  }
  [[nodiscard]] DiskImage after() const { return rebuild(trace, before, survival); }

  DiskImage before;
  Trace trace;
  Survival survival;
  std::size_t rename_ = 0;
};

const std::vector<std::byte> kWhole(3 * kSector, std::byte{7});

TEST_F(CrashModelTest, ANameMayBeThereWithoutAByteOfItsFile) {
  make(false);
  EXPECT_EQ(after().files.at("d/name").bytes, std::vector<std::byte>(3 * kSector));
  EXPECT_EQ(after().files.size(), 1U);
  survival.fill = [](int, std::span<std::byte> bytes) { std::ranges::fill(bytes, std::byte{9}); };
  EXPECT_EQ(after().files.at("d/name").bytes, std::vector<std::byte>(3 * kSector, std::byte{9}));
}

TEST_F(CrashModelTest, ASectorMayBeLostAlone) {
  make(false);
  survival.keeps_sector = [](std::size_t, std::size_t offset) { return offset != kSector; };
  std::vector<std::byte> expected = kWhole;
  std::fill_n(expected.begin() + kSector, kSector, std::byte{0});
  EXPECT_EQ(after().files.at("d/name").bytes, expected);
}

TEST_F(CrashModelTest, WhatIsSyncedIsThereUnlessItsNameIsNot) {
  make(true);
  EXPECT_EQ(after().files.at("d/name").bytes, kWhole);
  survival.resize = [](int, std::size_t) { return std::size_t{0}; };
  EXPECT_EQ(after().files.at("d/name").bytes, kWhole);
  keep_names(false);
  EXPECT_TRUE(after().files.empty());
}

TEST_F(CrashModelTest, ASyncThatWasUnderWayCoversNothing) {
  make(true);
  survival.moment = trace.steps[rename_ - 1].completed;
  EXPECT_EQ(after().files.at("d/new").bytes, std::vector<std::byte>(3 * kSector));
}

TEST_F(CrashModelTest, ANameNeedsItsDirectory) {
  make(false);
  survival.keeps = [](std::size_t step) { return step != 0; };
  EXPECT_TRUE(after().files.empty());
  EXPECT_TRUE(after().directories.empty());
}

TEST_F(CrashModelTest, ARenameMayLeaveBothNamesOrNone) {
  make(false);
  survival.takes_old_name = [](std::size_t) { return false; };
  EXPECT_TRUE(after().files.contains("d/name"));
  EXPECT_TRUE(after().files.contains("d/new"));
  survival.keeps = [this](std::size_t step) { return step != rename_; };
  survival.takes_old_name = [](std::size_t) { return true; };
  EXPECT_TRUE(after().files.empty());
}

TEST_F(CrashModelTest, WhatADeadProcessHadDoneIsThere) {
  make(false);
  keep_names(false);
  survival.process_only = true;
  EXPECT_EQ(after().files.at("d/name").bytes, kWhole);
  survival.moment = trace.steps[rename_].submitted;  // and what it had not begun is not
  EXPECT_EQ(after().files.at("d/new").bytes, kWhole);
  survival.moment = trace.steps[rename_].completed;  // between the two it may be
  EXPECT_EQ(after().files.count("d/new"), 1U);
  keep_names(true);
  EXPECT_EQ(after().files.count("d/name"), 1U);
}

TEST_F(CrashModelTest, WhatWasThereBeforeIsThereUntilItIsRemoved) {
  before.directories = {"d"};
  before.files["d/name"] = {{std::byte{1}}, 5};
  make(false);
  keep_names(false);
  EXPECT_EQ(after().files.at("d/name").bytes, std::vector{std::byte{1}});
  keep_names(true);
  EXPECT_EQ(after().files.at("d/name").bytes.size(), kWhole.size());
}

}  // namespace
}  // namespace lmkv::test
