#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <thread>

#include "common/unique_fd.hpp"
#include "io/fault_engine.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kBytes = 8 * kPageBytes;

// Remembers what became of its operations, and in which order.
class Recorder final : public OperationHandler {
 public:
  void on_complete(Operation& operation, int result) override {
    const std::lock_guard lock(mutex_);
    ended_.emplace_back(&operation, result);
    changed_.notify_all();
  }
  // Of as many operations; fails after ten seconds.
  std::vector<std::pair<Operation*, int>> wait(std::size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, 10s, [&] { return ended_.size() >= count; }));
    return ended_;
  }
  std::size_t ended() {
    const std::lock_guard lock(mutex_);
    return ended_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::pair<Operation*, int>> ended_;
};

class FaultEngineTest : public ::testing::TestWithParam<IoEngineChoice> {
 protected:
  FaultEngineTest() : file(::open((directory / "file").c_str(), O_RDWR | O_CREAT, 0600)) {
    test::fill_random(content.span(), 1);
    EXPECT_EQ(::pwrite(file.get(), content.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
  }

  void start(const std::string& spec, std::uint64_t seed = 1) {
    faults = std::make_shared<Faults>(parse_faults(spec), seed);
    engine = make_fault_engine(start_io_engine(GetParam(), 1).engine, faults);
  }
  Operation transfer(OperationKind kind, test::PageBuffer& buffer) {
    Operation op;
    op.kind = kind;
    op.handler = &recorder;
    op.descriptor = file.get();
    op.buffer = buffer.data();
    op.length = kBytes;
    return op;
  }
  int result_of(Operation op) {
    Recorder once;
    op.handler = &once;
    engine->submit(op);
    return once.wait(1).at(0).second;
  }
  std::vector<std::byte> on_disk() { return test::bytes_of_file(directory / "file"); }
  [[nodiscard]] std::vector<std::byte> expected() const {
    return {content.span().begin(), content.span().end()};
  }

  test::TemporaryDirectory directory;
  test::PageBuffer content{kBytes};
  UniqueFd file;
  Recorder recorder;
  std::shared_ptr<Faults> faults;
  std::unique_ptr<IoEngine> engine;
};

std::size_t bits_that_differ(std::span<const std::byte> a, std::span<const std::byte> b) {
  std::size_t bits = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    bits += static_cast<std::size_t>(std::popcount(std::to_integer<unsigned>(a[i] ^ b[i])));
  }
  return bits;
}

TEST_P(FaultEngineTest, WithoutFaultsItIsTheRealEngine) {
  start("");
  test::PageBuffer buffer(kBytes);
  EXPECT_EQ(result_of(transfer(OperationKind::kRead, buffer)), static_cast<int>(kBytes));
  EXPECT_TRUE(std::ranges::equal(buffer.span(), content.span()));
  EXPECT_TRUE(faults->counts().empty());
  EXPECT_EQ(engine->name(), start_io_engine(GetParam(), 1).engine->name());
}

TEST_P(FaultEngineTest, WhatIsLostIsTheAnswerAndNotTheOperation) {
  const std::size_t descriptors = test::open_descriptors();
  start("lost");
  const std::string made = directory / "made";
  Operation op;
  op.path = made.c_str();
  op.mode = 0700;
  op.kind = OperationKind::kMakeDirectory;
  EXPECT_EQ(result_of(op), -EEXIST);
  EXPECT_TRUE(std::filesystem::is_directory(made));
  op.kind = OperationKind::kRemoveDirectory;
  EXPECT_EQ(result_of(op), -ENOENT);
  EXPECT_FALSE(std::filesystem::exists(made));
  op.kind = OperationKind::kOpen;
  op.flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  EXPECT_EQ(result_of(op), -EEXIST);
  const std::string renamed = directory / "renamed";
  op.kind = OperationKind::kRename;
  op.target = renamed.c_str();
  EXPECT_EQ(result_of(op), -ENOENT);
  EXPECT_TRUE(std::filesystem::exists(renamed));
  EXPECT_FALSE(std::filesystem::exists(made));
  op.kind = OperationKind::kUnlink;
  EXPECT_EQ(result_of(op), -ENOENT) << "of its own: there is none";
  EXPECT_EQ(faults->count(FaultKind::kLost), 4U);

  start("lost_eio");
  op.path = renamed.c_str();
  op.kind = OperationKind::kOpen;
  op.flags = O_RDONLY | O_CLOEXEC;
  EXPECT_EQ(result_of(op), -EIO);
  op.kind = OperationKind::kUnlink;
  EXPECT_EQ(result_of(op), -EIO);
  EXPECT_FALSE(std::filesystem::exists(renamed));
  engine.reset();
  EXPECT_LE(test::open_descriptors(), descriptors) << "what was opened and lost is closed";
}

TEST_P(FaultEngineTest, ErrnosAreGivenInsteadOfTheOperation) {
  for (const auto& [name, error] : {std::pair("eio", EIO),
                                    {"enospc", ENOSPC},
                                    {"edquot", EDQUOT},
                                    {"estale", ESTALE},
                                    {"erofs", EROFS},
                                    {"eagain", EAGAIN},
                                    {"eintr", EINTR}}) {
    start(name);
    test::PageBuffer zeros(kBytes);
    std::ranges::fill(zeros.span(), std::byte{0});
    EXPECT_EQ(result_of(transfer(OperationKind::kWrite, zeros)), -error) << name;
    EXPECT_EQ(on_disk(), expected());
    const std::map<std::string, std::uint64_t> once = {{std::string("write.") + name, 1}};
    EXPECT_EQ(faults->counts(), once);
  }
}

TEST_P(FaultEngineTest, ACloseThatFailsHasLetGoOfTheDescriptor) {
  start("close.eio");
  const int descriptor = ::dup(file.get());
  Operation op;
  op.kind = OperationKind::kClose;
  op.descriptor = descriptor;
  EXPECT_EQ(result_of(op), -EIO);
  EXPECT_EQ(::fcntl(descriptor, F_GETFD), -1);
}

TEST_P(FaultEngineTest, AShortReadMovesLessAndSaysSo) {
  start("short");
  test::PageBuffer buffer(kBytes);
  std::ranges::fill(buffer.span(), std::byte{0xEE});
  const int moved = result_of(transfer(OperationKind::kRead, buffer));
  ASSERT_GT(moved, 0);
  ASSERT_LT(moved, static_cast<int>(kBytes));
  const auto bytes = static_cast<std::size_t>(moved);
  EXPECT_TRUE(std::ranges::equal(buffer.span().first(bytes), content.span().first(bytes)));
  for (const std::byte byte : buffer.span().subspan(bytes)) ASSERT_EQ(byte, std::byte{0xEE});
  EXPECT_EQ(faults->count(FaultKind::kShort), 1U);
}

TEST_P(FaultEngineTest, ADirectRequestIsShortByWholePages) {
  file = UniqueFd(::open((directory / "file").c_str(), O_RDWR | O_DIRECT));
  if (file.get() < 0) GTEST_SKIP() << "no O_DIRECT on the filesystem of the build";
  start("short");
  test::PageBuffer buffer(kBytes);
  for (int i = 0; i < 20; ++i) {
    const int moved = result_of(transfer(OperationKind::kRead, buffer));
    EXPECT_GT(moved, 0);
    EXPECT_EQ(moved % static_cast<int>(kPageBytes), 0);
  }
  Operation page = transfer(OperationKind::kRead, buffer);
  page.length = kPageBytes;
  EXPECT_EQ(result_of(page), static_cast<int>(kPageBytes));
  EXPECT_EQ(faults->count(FaultKind::kShort), 20U) << "what could not be short was counted";
}

TEST_P(FaultEngineTest, ATruncatedReadMeetsTheEnd) {
  start("truncate");
  test::PageBuffer buffer(kBytes);
  EXPECT_EQ(result_of(transfer(OperationKind::kRead, buffer)), 0);
}

TEST_P(FaultEngineTest, ATruncatedWriteLosesItsEndAndDoesNotSaySo) {
  start("truncate");
  test::PageBuffer fresh(kBytes);
  for (std::uint64_t seed = 2; seed < 12; ++seed) {
    test::fill_random(fresh.span(), seed);
    EXPECT_EQ(result_of(transfer(OperationKind::kWrite, fresh)), static_cast<int>(kBytes));
    const std::vector<std::byte> there = on_disk();
    ASSERT_EQ(there.size(), kBytes);
    EXPECT_FALSE(std::ranges::equal(there, fresh.span()));
  }
  // A real failure is not hidden.
  Operation op = transfer(OperationKind::kWrite, fresh);
  op.length = kBytes + 1;
  op.descriptor = 1 << 20;
  EXPECT_LT(result_of(op), 0);
}

TEST_P(FaultEngineTest, OneBitOfWhatIsReadIsFlipped) {
  start("corrupt");
  test::PageBuffer buffer(kBytes);
  EXPECT_EQ(result_of(transfer(OperationKind::kRead, buffer)), static_cast<int>(kBytes));
  EXPECT_EQ(bits_that_differ(buffer.span(), content.span()), 1U);
  EXPECT_EQ(on_disk(), expected());
  const std::map<std::string, std::uint64_t> once = {{"read.corrupt", 1}};
  EXPECT_EQ(faults->counts(), once);
}

TEST_P(FaultEngineTest, OneBitOfWhatIsWrittenIsFlippedOnTheDiskAlone) {
  start("corrupt");
  test::PageBuffer fresh(kBytes);
  test::fill_random(fresh.span(), 2);
  const std::vector<std::byte> before(fresh.span().begin(), fresh.span().end());
  EXPECT_EQ(result_of(transfer(OperationKind::kWrite, fresh)), static_cast<int>(kBytes));
  EXPECT_TRUE(std::ranges::equal(fresh.span(), before));
  EXPECT_EQ(bits_that_differ(on_disk(), before), 1U);
}

TEST_P(FaultEngineTest, ADelayedOperationIsLateAndHoldsUpNoOther) {
  start("write.delay:200ms");
  test::PageBuffer a(kBytes);
  test::PageBuffer b(kBytes);
  std::ranges::copy(content.span(), a.data());
  std::vector<Operation> slow(40,
                              transfer(OperationKind::kWrite, a));  // more than there are threads
  const auto begin = std::chrono::steady_clock::now();
  for (Operation& op : slow) engine->submit(op);
  Operation quick = transfer(OperationKind::kRead, b);
  engine->submit(quick);
  EXPECT_EQ(recorder.wait(1).at(0).first, &quick);
  EXPECT_EQ(recorder.wait(41).size(), 41U);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 200ms);
  EXPECT_EQ(faults->count(FaultKind::kDelay), 40U);
}

TEST_P(FaultEngineTest, OperationsOvertakeEachOther) {
  start("reorder:20ms");
  test::PageBuffer buffer(kBytes);
  std::vector<Operation> all(50, transfer(OperationKind::kRead, buffer));
  for (Operation& op : all) op.length = 0;  // the buffer is one
  for (Operation& op : all) engine->submit(op);
  const auto ended = recorder.wait(50);
  EXPECT_FALSE(std::ranges::is_sorted(ended, {}, &std::pair<Operation*, int>::first));
  EXPECT_EQ(faults->count(FaultKind::kReorder), 50U);
}

TEST_P(FaultEngineTest, WhatHangsWaitsForItsRelease) {
  start("hang");
  test::PageBuffer buffer(kBytes);
  Operation first = transfer(OperationKind::kRead, buffer);
  engine->submit(first);
  EXPECT_EQ(faults->hanging(), 1U);
  std::this_thread::sleep_for(30ms);
  EXPECT_EQ(recorder.ended(), 0U);
  faults->release();
  EXPECT_EQ(recorder.wait(1).at(0).second, static_cast<int>(kBytes));
  EXPECT_EQ(faults->hanging(), 0U);
  // A release is not for those to come.
  Operation second = transfer(OperationKind::kRead, buffer);
  engine->submit(second);
  std::this_thread::sleep_for(30ms);
  EXPECT_EQ(recorder.ended(), 1U);
  faults->change({});
  EXPECT_EQ(result_of(transfer(OperationKind::kRead, buffer)), static_cast<int>(kBytes));
  engine.reset();  // and with it what hangs
  EXPECT_EQ(recorder.ended(), 2U);
}

// Submits `left` operations, one when the other ends: the last ones while the engine goes.
class Chain final : public OperationHandler {
 public:
  Chain(IoEngine& engine, int length) : engine_(engine), left_(length) { op_.handler = this; }
  void start() {
    op_.kind = OperationKind::kClose;
    engine_.submit(op_);
  }
  void on_complete(Operation&, int) override {
    if (left_.fetch_sub(1) > 1) engine_.submit(op_);
  }
  [[nodiscard]] int left() const { return left_; }

 private:
  IoEngine& engine_;
  Operation op_;
  std::atomic<int> left_;
};

TEST_P(FaultEngineTest, ItsDestructorCompletesEverything) {
  start("hang:0.3,delay:3600s:0.3,reorder:0.3");
  std::vector<std::unique_ptr<Chain>> chains;
  for (int i = 0; i < 20; ++i) chains.push_back(std::make_unique<Chain>(*engine, 20));
  for (const auto& chain : chains) chain->start();
  engine.reset();
  for (const auto& chain : chains) EXPECT_EQ(chain->left(), 0);
  EXPECT_GT(faults->count(FaultKind::kHang), 0U);
  EXPECT_EQ(faults->hanging(), 0U);
}

TEST_P(FaultEngineTest, EqualSeedsMakeEqualFaults) {
  const auto results = [this](std::uint64_t seed) {
    start("eio:0.2,short:0.3,eagain:0.1", seed);
    test::PageBuffer buffer(kBytes);
    std::vector<int> all;
    for (int i = 0; i < 60; ++i) all.push_back(result_of(transfer(OperationKind::kRead, buffer)));
    return all;
  };
  const std::vector<int> first = results(7);
  EXPECT_EQ(results(7), first);
  EXPECT_NE(results(8), first);
}

TEST_P(FaultEngineTest, ManyThreadsMaySubmitAndChangeFaultsAtOnce) {
  start("eio:0.1,delay:1ms:0.2,hang:0.1,reorder:0.2");
  constexpr std::size_t kThreads = 4;
  constexpr std::size_t kEach = 200;
  std::vector<Operation> all(kThreads * kEach);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = t * kEach; i < (t + 1) * kEach; ++i) {
        all[i].kind = OperationKind::kClose;
        all[i].handler = &recorder;
        engine->submit(all[i]);
      }
    });
  }
  std::thread meddler([&] {
    while (!done) {
      faults->change(parse_faults("eio:0.1,delay:1ms:0.2,hang:0.1"));
      faults->release();
      static_cast<void>(faults->counts());
      std::this_thread::sleep_for(1ms);
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(recorder.wait(all.size()).size(), all.size());
  done = true;
  meddler.join();
}

INSTANTIATE_TEST_SUITE_P(Both, FaultEngineTest, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
