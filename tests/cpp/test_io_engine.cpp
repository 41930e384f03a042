#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <future>
#include <iostream>
#include <iterator>
#include <thread>

#include "common/types.hpp"
#include "io/io_engine.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

// One operation, waited for.
class Waiter final : public OperationHandler {
 public:
  int run(IoEngine& engine, Operation operation) { return start(engine, operation).get(); }
  // The operation stays where it is until the result is there.
  std::future<int> start(IoEngine& engine, Operation& operation) {
    std::future<int> result = result_.get_future();
    operation.handler = this;
    engine.submit(operation);
    return result;
  }
  void on_complete(Operation&, int result) override { result_.set_value(result); }

 private:
  std::promise<int> result_;
};

class IoEngineTest : public ::testing::TestWithParam<IoEngineChoice> {
 protected:
  int run(Operation operation) { return Waiter().run(*engine, operation); }
  int open(const std::string& path, int flags) {
    Operation op;
    op.kind = OperationKind::kOpen;
    op.path = path.c_str();
    op.flags = flags;
    op.mode = 0600;
    return run(op);
  }
  int on_path(OperationKind kind, const std::string& path, const std::string& target = {}) {
    Operation op;
    op.kind = kind;
    op.path = path.c_str();
    op.target = target.c_str();
    op.mode = 0700;
    return run(op);
  }
  int on_descriptor(OperationKind kind, int descriptor, std::span<std::byte> buffer = {},
                    std::uint64_t offset = 0) {
    Operation op;
    op.kind = kind;
    op.descriptor = descriptor;
    op.buffer = buffer.data();
    op.length = buffer.size();
    op.offset = offset;
    return run(op);
  }

  test::TemporaryDirectory directory;
  std::unique_ptr<IoEngine> engine = start_io_engine(GetParam(), 2).engine;
};

TEST_P(IoEngineTest, WritesAndReadsBack) {
  const std::string path = directory / "file";
  std::vector<std::byte> written(10000);
  test::fill_random(written, 1);
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(on_descriptor(OperationKind::kWrite, fd, written), 10000);
  EXPECT_EQ(on_descriptor(OperationKind::kSync, fd), 0);
  EXPECT_EQ(on_descriptor(OperationKind::kClose, fd), 0);

  fd = open(path, O_RDONLY);
  std::vector<std::byte> read(4000);
  EXPECT_EQ(on_descriptor(OperationKind::kRead, fd, read, 5000), 4000);
  EXPECT_TRUE(std::equal(read.begin(), read.end(), written.begin() + 5000));
  EXPECT_EQ(on_descriptor(OperationKind::kRead, fd, read, 9000), 1000);
  EXPECT_EQ(on_descriptor(OperationKind::kRead, fd, read, 10000), 0);
  EXPECT_EQ(on_descriptor(OperationKind::kClose, fd), 0);
}

TEST_P(IoEngineTest, ErrorsAreNegativeErrno) {
  EXPECT_EQ(open(directory / "none", O_RDONLY), -ENOENT);
  const int fd = open(directory / "file", O_WRONLY | O_CREAT);
  EXPECT_EQ(open(directory / "file", O_WRONLY | O_CREAT | O_EXCL), -EEXIST);
  std::vector<std::byte> buffer(1);
  EXPECT_EQ(on_descriptor(OperationKind::kRead, fd, buffer), -EBADF);
  EXPECT_EQ(on_descriptor(OperationKind::kClose, fd), 0);
  EXPECT_EQ(on_path(OperationKind::kUnlink, directory.path()), -EISDIR);
}

TEST_P(IoEngineTest, DirectoriesAndNames) {
  EXPECT_EQ(on_path(OperationKind::kMakeDirectory, directory / "d"), 0);
  EXPECT_EQ(on_path(OperationKind::kMakeDirectory, directory / "d"), -EEXIST);
  test::write_file(directory / "a", std::vector<std::byte>(123));
  EXPECT_EQ(on_path(OperationKind::kRename, directory / "a", directory / "d/b"), 0);

  struct statx status{};
  Operation op;
  op.kind = OperationKind::kStat;
  const std::string path = directory / "d/b";
  op.path = path.c_str();
  op.status = &status;
  EXPECT_EQ(run(op), 0);
  EXPECT_EQ(status.stx_size, 123U);
  EXPECT_TRUE(S_ISREG(status.stx_mode));

  EXPECT_EQ(on_path(OperationKind::kRemoveDirectory, directory / "d"), -ENOTEMPTY);
  EXPECT_EQ(on_path(OperationKind::kUnlink, path), 0);
  EXPECT_EQ(on_path(OperationKind::kRemoveDirectory, directory / "d"), 0);
}

TEST_P(IoEngineTest, AllocateSetsTheSize) {
  const int fd = open(directory / "file", O_WRONLY | O_CREAT);
  Operation op;
  op.kind = OperationKind::kAllocate;
  op.descriptor = fd;
  op.length = 1 << 20;
  EXPECT_EQ(run(op), 0);
  EXPECT_EQ(on_descriptor(OperationKind::kClose, fd), 0);
  EXPECT_EQ(std::filesystem::file_size(directory / "file"), 1U << 20);
}

TEST_P(IoEngineTest, WrittenBackPagesLeaveThePageCache) {
  const std::string path = directory / "file";
  std::vector<std::byte> bytes(64 * kPageBytes);
  test::fill_random(bytes, 1);
  const int fd = open(path, O_WRONLY | O_CREAT);
  ASSERT_EQ(on_descriptor(OperationKind::kWrite, fd, bytes), static_cast<int>(bytes.size()));
  if (test::pages_cached(path) == 0) GTEST_SKIP() << "this filesystem has no page cache";
  EXPECT_EQ(on_descriptor(OperationKind::kWriteBack, fd), 0);
  EXPECT_EQ(on_descriptor(OperationKind::kDropPages, fd), 0);
  EXPECT_EQ(test::pages_cached(path), 0U);
  EXPECT_EQ(on_descriptor(OperationKind::kClose, fd), 0);
  EXPECT_EQ(test::bytes_of_file(path), bytes);
}

TEST_P(IoEngineTest, APauseEndsWhenItsTimeHasPassedAndHoldsNobodyUp) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPauses = 40;  // more than there are threads
  std::vector<Waiter> waiters(kPauses);
  std::vector<Operation> pauses(kPauses);
  std::vector<std::future<int>> results;
  const Clock::time_point begin = Clock::now();
  for (int i = 0; i < kPauses; ++i) {
    pauses[i].kind = OperationKind::kPause;
    pauses[i].pause = {0, 300'000'000};
    results.push_back(waiters[i].start(*engine, pauses[i]));
  }
  EXPECT_EQ(open(directory / "none", O_RDONLY), -ENOENT);
  EXPECT_LT(Clock::now() - begin, std::chrono::milliseconds(300));
  for (std::future<int>& result : results) EXPECT_EQ(result.get(), 0);
  const Clock::duration took = Clock::now() - begin;
  EXPECT_GE(took, std::chrono::milliseconds(300));
  EXPECT_LT(took, std::chrono::seconds(3)) << "one after another they take 12";
}

TEST_P(IoEngineTest, WhatWasSubmittedBeforeADeferredOperationGoesOnWhileThatIsHandled) {
  struct Handler final : OperationHandler {
    explicit Handler(IoEngine& its_engine) : engine(its_engine) {}
    void on_complete(Operation& operation, int) override {
      if (operation.kind == OperationKind::kClose) {  // as a file that has been read
        engine.submit(unlink);
        engine.submit(defer);
      } else if (operation.kind == OperationKind::kDefer) {
        bool gone = false;
        for (int i = 0; i < 5000 && !gone; ++i) {
          gone = !std::filesystem::exists(unlink.path);
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        went.set_value(gone);
      }
    }
    IoEngine& engine;
    Operation unlink;
    Operation defer;
    std::promise<bool> went;
  } handler(*engine);
  const std::string path = directory / "file";
  Operation close;
  close.kind = OperationKind::kClose;
  close.descriptor = open(path, O_WRONLY | O_CREAT);
  ASSERT_GE(close.descriptor, 0);
  handler.unlink.kind = OperationKind::kUnlink;
  handler.unlink.path = path.c_str();
  handler.defer.kind = OperationKind::kDefer;
  for (Operation* each : {&close, &handler.unlink, &handler.defer}) each->handler = &handler;
  std::future<bool> went = handler.went.get_future();
  engine->submit(close);
  EXPECT_TRUE(went.get());
  engine.reset();  // before what its handler uses
}

TEST_P(IoEngineTest, TheDestructorWaitsForPauses) {
  Waiter waiter;
  Operation pause;
  pause.kind = OperationKind::kPause;
  pause.pause = {0, 50'000'000};
  std::future<int> result = waiter.start(*engine, pause);
  engine.reset();
  ASSERT_EQ(result.wait_for(std::chrono::seconds(0)), std::future_status::ready);
  EXPECT_EQ(result.get(), 0);
}

TEST_P(IoEngineTest, RegisteredMemoryIsReadAndWrittenLikeAnyOther) {
  constexpr std::size_t kSlab = 3 * kPageBytes;
  engine = start_io_engine(GetParam(), 1).engine;  // one ring, and so one number of slabs
  test::PageBuffer memory(4 * kSlab);
  test::PageBuffer elsewhere(2 * kPageBytes);
  test::fill_random(memory.span(), 1);
  test::fill_random(elsewhere.span(), 2);
  const std::string refusal = engine->register_memory({memory.data(), memory.size(), kSlab});
  EXPECT_TRUE(engine->name() == "io_uring" || !refusal.empty());
  const int fd = open(directory / "file", O_RDWR | O_CREAT);
  const auto round_trip = [&](std::span<std::byte> bytes) {
    const std::vector<std::byte> written(bytes.begin(), bytes.end());
    EXPECT_EQ(on_descriptor(OperationKind::kWrite, fd, bytes), static_cast<int>(bytes.size()));
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    EXPECT_EQ(on_descriptor(OperationKind::kRead, fd, bytes), static_cast<int>(bytes.size()));
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), written.begin()));
  };
  round_trip(memory.span().subspan(0, kSlab));
  round_trip(memory.span().subspan(0, kSlab));  // the second time it is known
  round_trip(memory.span().subspan(2 * kSlab + kPageBytes, kPageBytes));
  round_trip(memory.span().subspan(kPageBytes, kSlab));  // in two slabs: in none
  round_trip(elsewhere.span());
  EXPECT_EQ(on_descriptor(OperationKind::kClose, fd), 0);
  const std::string words = engine->info()["registered_buffers"];
  EXPECT_TRUE(!refusal.empty() || words == "2 of 4 slabs") << words;
}

// A handler that submits from its I/O thread, many times, from several chains at once: more than a
// ring has entries.
class Chain final : public OperationHandler {
 public:
  Chain(IoEngine& engine, int descriptor, int length)
      : engine_(engine), left_(length), buffer_(16) {
    operation_.kind = OperationKind::kRead;
    operation_.handler = this;
    operation_.descriptor = descriptor;
    operation_.buffer = buffer_.data();
    operation_.length = buffer_.size();
  }
  void start() { engine_.submit(operation_); }
  std::future<void> finished() { return finished_.get_future(); }
  void on_complete(Operation&, int result) override {
    EXPECT_EQ(result, 16);
    if (--left_ == 0) return finished_.set_value();
    engine_.submit(operation_);
  }

 private:
  IoEngine& engine_;
  int left_;
  std::vector<std::byte> buffer_;
  Operation operation_;
  std::promise<void> finished_;
};

TEST_P(IoEngineTest, HandlersMaySubmitAndQueuesMayBeLong) {
  test::write_file(directory / "file", std::vector<std::byte>(16));
  const int fd = open(directory / "file", O_RDONLY);
  std::vector<std::unique_ptr<Chain>> chains;
  std::vector<std::future<void>> finished;
  for (int i = 0; i < 1000; ++i) {
    chains.push_back(std::make_unique<Chain>(*engine, fd, 5));
    finished.push_back(chains.back()->finished());
  }
  for (const auto& chain : chains) chain->start();
  for (auto& future : finished) future.get();
  EXPECT_EQ(on_descriptor(OperationKind::kClose, fd), 0);
}

TEST_P(IoEngineTest, TheDestructorWaitsForWhatWasSubmitted) {
  test::write_file(directory / "file", std::vector<std::byte>(16));
  const int fd = open(directory / "file", O_RDONLY);
  Chain chain(*engine, fd, 200);
  std::future<void> finished = chain.finished();
  chain.start();
  engine.reset();
  EXPECT_EQ(finished.wait_for(std::chrono::seconds(0)), std::future_status::ready);
  ::close(fd);
}

// vLLM pins its CPU workers to the core that they compute on, and threads inherit that.
class WhereItRuns final : public OperationHandler {
 public:
  void on_complete(Operation&, int) override {
    cpu_set_t processors;
    CPU_ZERO(&processors);
    ::sched_getaffinity(0, sizeof processors, &processors);
    processors_.set_value(processors);
  }
  std::future<cpu_set_t> processors() { return processors_.get_future(); }

 private:
  std::promise<cpu_set_t> processors_;
};

TEST_P(IoEngineTest, ItsThreadsDoNotStayOnTheCoreOfAPinnedMaker) {
  cpu_set_t everywhere;
  CPU_ZERO(&everywhere);
  ASSERT_EQ(::sched_getaffinity(::getppid(), sizeof everywhere, &everywhere), 0);
  std::thread pinned([&] {
    int first = 0;
    while (!CPU_ISSET(first, &everywhere)) ++first;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
    engine = start_io_engine(GetParam(), 1).engine;
  });
  pinned.join();
  WhereItRuns handler;
  std::future<cpu_set_t> processors = handler.processors();
  Operation op;
  op.kind = OperationKind::kUnlink;
  const std::string path = directory / "none";
  op.path = path.c_str();
  op.handler = &handler;
  engine->submit(op);
  const cpu_set_t found = processors.get();
  EXPECT_TRUE(CPU_EQUAL(&found, &everywhere));
}

INSTANTIATE_TEST_SUITE_P(Both, IoEngineTest, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

// What the kernel lets one process pin is asked for slab by slab: beyond it all goes on without.
// CAP_IPC_LOCK is above the limit, and given up, as containers do, by the process that tries.
int store_beyond_the_limit_of_locked_memory(const std::string& path) {
  constexpr std::size_t kSlab = 1 << 20;
  const rlimit limit{4 * kSlab, 4 * kSlab};
  if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 10;
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3]{};
  if (::syscall(SYS_capset, &header, none) != 0) return 11;
  test::PageBuffer memory(16 * kSlab);
  test::fill_random(memory.span().first(kPageBytes), 1);
  const std::unique_ptr<IoEngine> engine = make_uring_engine(1);
  if (const std::string no = engine->register_memory({memory.data(), memory.size(), kSlab});
      !no.empty()) {
    return no.find("Cannot allocate memory") != std::string::npos ? 0 : 12;
  }
  Operation op;
  op.kind = OperationKind::kOpen;
  op.path = path.c_str();
  op.flags = O_WRONLY | O_CREAT;
  op.mode = 0600;
  const int fd = Waiter().run(*engine, op);
  for (std::size_t slab = 0; slab < 16; ++slab) {
    op = {};
    op.kind = OperationKind::kWrite;
    op.descriptor = fd;
    op.buffer = memory.data() + slab * kSlab;
    op.length = kSlab;
    op.offset = slab * kSlab;
    if (Waiter().run(*engine, op) != static_cast<int>(kSlab)) return 13;
  }
  ::close(fd);
  const std::string words = engine->info()["registered_buffers"];
  std::cerr << words << "\n";
  const bool some_only = words.find("no more: Cannot allocate memory") != std::string::npos;
  return some_only && test::bytes_of_file(path).size() == 16 * kSlab ? 0 : 14;
}

TEST(IoUring, WhatMayNotBePinnedIsUsedUnregistered) {
  if (test::usable_engines().size() < 2) GTEST_SKIP() << "no io_uring";
  const test::TemporaryDirectory directory;
  const std::string path = directory / "file";
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  // The child makes a directory of its own, and its destructors do not run.
  const auto in_child = [&] {
    const int result = store_beyond_the_limit_of_locked_memory(path);
    std::filesystem::remove_all(directory.path());
    ::_exit(result);
  };
  EXPECT_EXIT(in_child(), ::testing::ExitedWithCode(0), "slabs, no more");
}

// As Docker's default seccomp profile does. Binds the calling thread, and threads that it makes.
void refuse_io_uring() {
  sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<unsigned short>(std::size(rules)), rules};
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

TEST(IoEngineSelection, WhereIoUringIsRefusedThreadsTakeOverAndSayWhy) {
  std::thread confined([] {
    refuse_io_uring();
    const IoEngineSelection selection = start_io_engine(IoEngineChoice::kAuto, 1);
    EXPECT_EQ(selection.engine->name(), "threads");
    EXPECT_NE(selection.reason.find("io_uring"), std::string::npos) << selection.reason;
    EXPECT_THROW(start_io_engine(IoEngineChoice::kUring, 1), std::runtime_error);
  });
  confined.join();
}

TEST(IoEngineSelection, SaysWhyItChose) {
  EXPECT_EQ(start_io_engine(IoEngineChoice::kThreads, 1).reason, "asked for");
  EXPECT_FALSE(start_io_engine(IoEngineChoice::kAuto, 1).reason.empty());
  const IoEngineSelection buffered = start_io_engine(IoEngineChoice::kAuto, 1, Caching::kBuffered);
  EXPECT_EQ(buffered.engine->name(), "threads");
  EXPECT_NE(buffered.reason.find("page cache"), std::string::npos) << buffered.reason;
}

}  // namespace
}  // namespace lmkv
