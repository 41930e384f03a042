#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <future>
#include <map>
#include <thread>

#include "chunk_tree.hpp"
#include "fault_engine.hpp"
#include "file_io_fixture.hpp"
#include "io/direct_file.hpp"
#include "io/root_probe.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using test::FaultEngine;
using test::kFileBytes;
using test::kRequestBytes;
using Outcome = FileWrite::Outcome;

class DirectFileTest : public test::FileIoTest {};

TEST_P(DirectFileTest, AFileIsPublishedWholeInDirectoriesMadeOnTheWay) {
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_source_at(target);
  EXPECT_EQ(leftovers(), 0U);
  expect_read_source();
  struct stat status{};
  ASSERT_EQ(::stat(target.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
}

TEST_P(DirectFileTest, AFileThatIsThereIsNotWrittenAgain) {
  EXPECT_EQ(write_source(), Outcome::kWritten);
  EXPECT_EQ(write_source(), Outcome::kAlreadyThere);
}

TEST_P(DirectFileTest, WithoutDirectIoTheResultIsTheSame) {
  options.caching = Caching::kBuffered;
  options.publish = Publish::kSyncThenRename;
  start({});
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_read_source();
  EXPECT_EQ(files->direct_io_fallbacks(), 0U);
}

TEST_P(DirectFileTest, WithoutDirectIoWhatWasMovedLeavesThePageCache) {
  options.caching = Caching::kBuffered;
  for (const Publish publish : {Publish::kRename, Publish::kSyncThenRename}) {
    options.publish = publish;
    start({});
    const std::string path = directory / (publish == Publish::kRename ? "abc/one" : "abc/two");
    EXPECT_EQ(write(path, source.span()).second, Outcome::kWritten);
    EXPECT_EQ(test::pages_cached(path), 0U) << "after the store";
    EXPECT_TRUE(read(path).is_ok());
    EXPECT_EQ(test::pages_cached(path), 0U) << "after the load";
  }
}

TEST_P(DirectFileTest, AFilesystemThatKeepsItsPagesIsServedAllTheSame) {
  options.caching = Caching::kBuffered;
  start([](Operation& op) -> std::optional<int> {
    const bool hint = op.kind == OperationKind::kWriteBack || op.kind == OperationKind::kDropPages;
    return hint ? std::optional<int>(-EOPNOTSUPP) : std::nullopt;
  });
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_read_source();
}

TEST_P(DirectFileTest, AFileOfAnotherSizeIsReplaced) {
  std::filesystem::create_directories(directory / "abc");
  test::write_file(target, {});
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_source_at(target);
}

TEST_P(DirectFileTest, AnEmptyDirectoryInTheFilesPlaceGivesWay) {
  std::filesystem::create_directories(target);
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_source_at(target);
}

TEST_P(DirectFileTest, ADirectoryWithSomethingInItIsNotTouched) {
  std::filesystem::create_directories(target + "/users own");
  EXPECT_EQ(write_source(), Outcome::kFailed);
  EXPECT_TRUE(std::filesystem::exists(target + "/users own"));
  EXPECT_EQ(leftovers(), 0U);
}

TEST_P(DirectFileTest, TwoWritersOfOneFileLeaveOneWholeFile) {
  std::vector<std::future<void>> done;
  std::vector<std::promise<void>> promises(16);
  for (std::size_t i = 0; i < promises.size(); ++i) {
    done.push_back(promises[i].get_future());
    FileWrite request;
    request.path = target;
    request.temporary = beside(target, "w" + std::to_string(i));
    request.directories = {directory / "abc"};
    request.buffer = source.data();
    request.bytes = source.size();
    request.done = [&promises, i](const Status& status, Outcome outcome) {
      EXPECT_NE(outcome, Outcome::kFailed) << status.message();
      promises[i].set_value();
    };
    files->write(std::move(request));
  }
  for (auto& future : done) future.get();
  expect_source_at(target);
  EXPECT_EQ(leftovers(), 0U);
}

TEST_P(DirectFileTest, WhatIsNotTheFileIsTold) {
  std::filesystem::create_directories(directory / "abc");
  EXPECT_EQ(read(target).kind(), StatusKind::kMissing);
  EXPECT_EQ(read(directory / "nowhere/file").kind(), StatusKind::kMissing);

  test::write_file(target, {});
  EXPECT_EQ(read(target).kind(), StatusKind::kBadChunk);
  test::write_file(target, source.span().first(kFileBytes - 100));
  EXPECT_EQ(read(target).kind(), StatusKind::kBadChunk);

  std::filesystem::remove(target);
  std::filesystem::create_directory(target);
  EXPECT_EQ(read(target).kind(), StatusKind::kBadChunk);

  std::filesystem::remove(target);
  test::write_file(directory / "elsewhere", source.span());
  std::filesystem::create_symlink(directory / "elsewhere", target);
  EXPECT_EQ(read(target).kind(), StatusKind::kBadChunk);

  std::filesystem::remove(target);
  ASSERT_EQ(::mkfifo(target.c_str(), 0600), 0);
  EXPECT_EQ(read(target).kind(), StatusKind::kBadChunk);  // and does not wait for a writer
}

TEST_P(DirectFileTest, RemoveTakesFilesLinksAndEmptyDirectories) {
  const auto remove = [&](const std::string& path) {
    std::promise<Status> promise;
    auto result = promise.get_future();
    files->remove(path, [&](Status status) { promise.set_value(status); });
    return result.get();
  };
  test::write_file(directory / "file", {});
  std::filesystem::create_symlink(directory / "file", directory / "link");
  std::filesystem::create_directory(directory / "empty");
  std::filesystem::create_directories(directory / "full/x");
  EXPECT_TRUE(remove(directory / "link").is_ok());
  EXPECT_TRUE(std::filesystem::exists(directory / "file"));
  EXPECT_TRUE(remove(directory / "file").is_ok());
  EXPECT_TRUE(remove(directory / "empty").is_ok());
  EXPECT_TRUE(remove(directory / "never was").is_ok());
  EXPECT_EQ(remove(directory / "full").error_number(), ENOTEMPTY);
}

// ---- Faults through the seam

TEST_P(DirectFileTest, ShortReadsAndWritesAreContinued) {
  start([n = 0](Operation& op) mutable -> std::optional<int> {
    if (op.kind == OperationKind::kRead || op.kind == OperationKind::kWrite) {
      if (++n % 2 == 1 && op.length > kPageBytes) op.length = kPageBytes;
    }
    return std::nullopt;
  });
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_source_at(target);
  expect_read_source();
}

TEST_P(DirectFileTest, InterruptionsAndShortagesAreRetried) {
  start([n = 0](Operation& op) mutable -> std::optional<int> {
    if (op.kind == OperationKind::kClose) return std::nullopt;
    ++n;
    if (n % 3 == 1) return -EINTR;
    if (n % 3 == 2) return -EAGAIN;
    return std::nullopt;
  });
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_read_source();
}

TEST_P(DirectFileTest, AnInterruptedCloseHasClosedAndIsNotRepeated) {
  int closes = 0;
  start([&](Operation& op) -> std::optional<int> {
    if (op.kind != OperationKind::kClose) return std::nullopt;
    ++closes;
    ::close(op.descriptor);
    return -EINTR;
  });
  EXPECT_EQ(write_source(), Outcome::kFailed) << "the data may not have arrived";
  EXPECT_EQ(closes, 1);
  EXPECT_EQ(leftovers(), 0U);
}

TEST_P(DirectFileTest, AnEndlessStormFailsAndIsNotSpunThrough) {
  int tries = 0;
  int pauses = 0;
  start([&](Operation& op) -> std::optional<int> {
    if (op.kind == OperationKind::kPause) ++pauses;
    if (op.kind != OperationKind::kWrite) return std::nullopt;
    ++tries;
    return -EAGAIN;
  });
  const auto began = std::chrono::steady_clock::now();
  const auto [status, outcome] = write(target, source.span());
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(200));
  EXPECT_GE(pauses, tries * 9 / 10);
  EXPECT_EQ(outcome, Outcome::kFailed);
  EXPECT_EQ(status.error_number(), EAGAIN);
  EXPECT_EQ(leftovers(), 0U);
}

TEST_P(DirectFileTest, EveryStepThatFailsLeavesNothingBehind) {
  for (const OperationKind kind :
       {OperationKind::kOpen, OperationKind::kAllocate, OperationKind::kWrite, OperationKind::kSync,
        OperationKind::kClose, OperationKind::kRename}) {
    for (const int error : {ENOSPC, EDQUOT, EIO, EROFS, EACCES}) {
      options.publish = Publish::kSyncThenRename;
      bool tripped = false;
      files.reset();
      engine.reset();
      const std::size_t descriptors = test::open_descriptors();
      start([&, kind, error](Operation& op) -> std::optional<int> {
        if (op.kind != kind || tripped) return std::nullopt;
        tripped = true;
        if (kind == OperationKind::kClose) ::close(op.descriptor);
        return -error;
      });
      const auto [status, outcome] = write(target, source.span());
      EXPECT_TRUE(tripped);
      EXPECT_EQ(outcome, Outcome::kFailed);
      EXPECT_EQ(status.error_number(), error);
      EXPECT_FALSE(std::filesystem::exists(target));
      EXPECT_EQ(leftovers(), 0U);
      EXPECT_EQ(files->write_bytes_in_flight(), 0U);
      files.reset();
      engine.reset();
      EXPECT_EQ(test::open_descriptors(), descriptors);
    }
  }
}

TEST_P(DirectFileTest, AReadThatFailsIsNeverSuccess) {
  ASSERT_EQ(write_source(), Outcome::kWritten);
  for (const OperationKind kind :
       {OperationKind::kEnter, OperationKind::kStat, OperationKind::kOpen, OperationKind::kRead}) {
    for (const int error : {EIO, EACCES, ESTALE}) {
      start([kind, error, n = 0](Operation& op) mutable -> std::optional<int> {
        // A stale handle is tried once more.
        const bool now = op.kind == kind && (++n == 1 || error == ESTALE);
        return now ? std::optional<int>(-error) : std::nullopt;
      });
      const Status status = read(target);
      const bool damaged = kind == OperationKind::kRead && error == EIO;
      const StatusKind expected = error == ESTALE ? StatusKind::kMissing
                                  : damaged       ? StatusKind::kBadChunk
                                                  : StatusKind::kIo;
      EXPECT_EQ(status.kind(), expected);
      const bool of_one_file = kind == OperationKind::kOpen && error == EACCES;
      if (expected == StatusKind::kIo) {
        EXPECT_EQ(status.error_number(), of_one_file ? 0 : error);
      }
    }
  }
  start({});
  expect_read_source();
}

TEST_P(DirectFileTest, AFileThatShrinksWhileItIsReadIsBad) {
  ASSERT_EQ(write_source(), Outcome::kWritten);
  start([this](Operation& op) -> std::optional<int> {
    if (op.kind == OperationKind::kOpen) std::filesystem::resize_file(target, 2 * kPageBytes + 10);
    return std::nullopt;
  });
  EXPECT_EQ(read(target).kind(), StatusKind::kBadChunk);
}

TEST_P(DirectFileTest, ALinkPutInTheFilesPlaceWhileItIsOpenedIsNotFollowed) {
  ASSERT_EQ(write_source(), Outcome::kWritten);
  start([this](Operation& op) -> std::optional<int> {
    if (op.kind == OperationKind::kOpen) {
      std::filesystem::rename(target, directory / "moved");
      std::filesystem::create_symlink(directory / "moved", target);
    }
    return std::nullopt;
  });
  EXPECT_EQ(read(target).kind(), StatusKind::kBadChunk);
}

TEST_P(DirectFileTest, AFilesystemThatRefusesDirectIoIsRemembered) {
  options.caching = Caching::kDirect;
  for (const OperationKind refusing : {OperationKind::kOpen, OperationKind::kWrite}) {
    std::filesystem::remove_all(directory / "abc");
    std::map<int, int> opens;  // by O_DIRECT or not
    bool direct_descriptor = false;
    start([&, refusing](Operation& op) -> std::optional<int> {
      if (op.kind == OperationKind::kOpen) {
        direct_descriptor = (op.flags & O_DIRECT) != 0;
        ++opens[op.flags & O_DIRECT];
        if (direct_descriptor && refusing == OperationKind::kOpen) return -EINVAL;
        op.flags &= ~O_DIRECT;  // the real filesystem here may lack it too
      }
      if (op.kind == refusing && direct_descriptor) return -EINVAL;
      return std::nullopt;
    });
    EXPECT_EQ(write_source(), Outcome::kWritten);
    expect_read_source();
    EXPECT_EQ(files->caching(), Caching::kBuffered);
    EXPECT_EQ(files->direct_io_fallbacks(), 1U);
    EXPECT_EQ(leftovers(), 0U);
    EXPECT_EQ(opens[O_DIRECT], 1) << "asked again after the refusal";
  }
}

TEST_P(DirectFileTest, ReadDirectRefusedAtReadFallsBack) {
  ASSERT_EQ(write_source(), Outcome::kWritten);
  options.caching = Caching::kDirect;
  bool direct_descriptor = false;
  start([&](Operation& op) -> std::optional<int> {
    if (op.kind == OperationKind::kOpen) {
      direct_descriptor = (op.flags & O_DIRECT) != 0;
      op.flags &= ~O_DIRECT;
    }
    if (op.kind == OperationKind::kRead && direct_descriptor) return -EINVAL;
    return std::nullopt;
  });
  expect_read_source();
  EXPECT_EQ(files->direct_io_fallbacks(), 1U);
}

// ---- Admission

TEST_P(DirectFileTest, BytesInFlightStayWithinTheDepthAndWritesYieldToWaitingReads) {
  constexpr int kFiles = 8;
  for (int i = 0; i < kFiles; ++i) {
    ASSERT_EQ(write(directory / ("in/" + std::to_string(i)), source.span()).second,
              Outcome::kWritten);
  }
  options.read_depth = 2 * kFileBytes;
  options.write_depth = 3 * kFileBytes;
  std::size_t most_reads = 0;
  std::size_t most_writes = 0;
  std::size_t most_writes_beside_waiting_reads = 0;
  std::atomic<int> reads_done{0};
  std::atomic<bool> all_reads_asked{false};
  start([&](Operation&) -> std::optional<int> {
    const std::size_t reads = files->read_bytes_in_flight();
    const std::size_t writes = files->write_bytes_in_flight();
    most_reads = std::max(most_reads, reads);
    most_writes = std::max(most_writes, writes);
    const bool reads_wait =
        reads_done + static_cast<int>(reads / kFileBytes) + 3 < kFiles && all_reads_asked;
    if (reads_wait) {
      most_writes_beside_waiting_reads = std::max(most_writes_beside_waiting_reads, writes);
    }
    return std::nullopt;
  });
  std::vector<std::unique_ptr<test::PageBuffer>> sinks;
  std::atomic<int> left{2 * kFiles};
  std::promise<void> all;
  const auto one_done = [&] {
    if (--left == 0) all.set_value();
  };
  for (int i = 0; i < kFiles; ++i) {
    sinks.push_back(std::make_unique<test::PageBuffer>(kFileBytes));
    files->read({directory / ("in/" + std::to_string(i)), sinks.back()->data(), kFileBytes,
                 [&](const Status& status) {
                   EXPECT_TRUE(status.is_ok()) << status.message();
                   ++reads_done;
                   one_done();
                 }});
  }
  all_reads_asked = true;
  for (int i = 0; i < kFiles; ++i) {
    FileWrite request;
    request.path = directory / ("out/" + std::to_string(i));
    request.temporary = beside(request.path, "o" + std::to_string(i));
    request.directories = {directory / "out"};
    request.buffer = source.data();
    request.bytes = source.size();
    request.done = [&](const Status& status, Outcome) {
      EXPECT_TRUE(status.is_ok()) << status.message();
      one_done();
    };
    files->write(std::move(request));
  }
  all.get_future().get();
  files->shutdown();
  EXPECT_EQ(most_reads, 2 * kFileBytes);
  EXPECT_LE(most_writes, 3 * kFileBytes);
  EXPECT_LE(most_writes_beside_waiting_reads, kFileBytes);
}

TEST_P(DirectFileTest, EachOperationHasItsOwnRetries) {
  constexpr int kStorm = 80;  // of each request: of all together, more than one may have
  static_assert(kStorm * ((kFileBytes + kRequestBytes - 1) / kRequestBytes) > 200);
  std::map<std::uint64_t, int> refused;
  start([&](Operation& operation) -> std::optional<int> {
    if (operation.kind != OperationKind::kWrite) return std::nullopt;
    return ++refused[operation.offset] <= kStorm ? std::optional(-EAGAIN) : std::nullopt;
  });
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_source_at(target);
}

TEST_P(DirectFileTest, ShutdownCancelsTheQueueAndWaitsForTheRest) {
  options.write_depth = 1;  // one file at a time
  start({});
  std::atomic<int> reported{0};
  std::atomic<int> cancelled{0};
  for (int i = 0; i < 50; ++i) {
    FileWrite request;
    request.path = directory / ("out/" + std::to_string(i));
    request.temporary = beside(request.path, "o" + std::to_string(i));
    request.directories = {directory / "out"};
    request.buffer = source.data();
    request.bytes = source.size();
    request.done = [&](const Status& status, Outcome) {
      ++reported;
      if (status.kind() == StatusKind::kCancelled) ++cancelled;
    };
    files->write(std::move(request));
  }
  files->shutdown();
  EXPECT_EQ(reported, 50);
  EXPECT_EQ(read(target).kind(), StatusKind::kCancelled);
  EXPECT_EQ(leftovers(), 0U);
}

TEST_P(DirectFileTest, AWrittenFileCarriesTheTimeThatItWasGiven) {
  modified_ns = 1'700'000'000'123'456'000;
  EXPECT_EQ(write_source(), Outcome::kWritten);
  EXPECT_EQ(test::modified_ns(target), modified_ns);
  modified_ns += 5;
  EXPECT_EQ(write_source(), Outcome::kAlreadyThere);
  EXPECT_EQ(test::modified_ns(target), modified_ns);
  EXPECT_EQ(files->touched(), 1U);
  modified_ns -= 7;  // a file is not made older
  EXPECT_EQ(write_source(), Outcome::kAlreadyThere);
  EXPECT_EQ(test::modified_ns(target), modified_ns + 7);
}

TEST_P(DirectFileTest, ATimeThatCannotBeSetCostsNothingButIsCounted) {
  start([](Operation& op) -> std::optional<int> {
    return op.kind == OperationKind::kSetModified ? std::optional(-EPERM) : std::nullopt;
  });
  modified_ns = 1'700'000'000'123'456'000;
  EXPECT_EQ(write_source(), Outcome::kWritten);
  expect_source_at(target);
  EXPECT_EQ(files->touches_failed(), 1U);
}

TEST_P(DirectFileTest, ATouchRenewsAFileThatIsOlderAndNoOther) {
  EXPECT_EQ(write_source(), Outcome::kWritten);
  test::ChunkTree::set_used(target, std::chrono::hours(1));
  const std::int64_t old = test::modified_ns(target);
  files->touch(target, old - 1);
  files->touch(directory / "none", old + 1000);
  std::filesystem::create_symlink(target, directory / "link");
  files->touch(directory / "link", old + 1000);
  files->touch(directory.path(), old + (std::int64_t{1} << 60));
  files->touch(target, old + 9000);
  ASSERT_TRUE(test::eventually([&] { return files->touched() == 1; }));
  files->shutdown();
  EXPECT_EQ(test::modified_ns(target), old + 9000);
  EXPECT_EQ(files->touched(), 1U);
  EXPECT_EQ(files->touches_failed(), 0U);
}

TEST_P(DirectFileTest, TouchesThatPileUpBehindAFilesystemThatHangsAreDroppedAndCounted) {
  std::atomic<bool> hangs{true};
  start([&](Operation& op) -> std::optional<int> {
    const bool again = op.kind == OperationKind::kEnter && hangs;
    return again ? std::optional(-EAGAIN) : std::nullopt;
  });
  std::vector<std::string> paths(17'000, target);
  for (const std::string& path : paths) files->touch(path, 1);
  EXPECT_GT(files->touches_failed(), 0U);
  hangs = false;
  files->shutdown();
}

TEST_P(DirectFileTest, AWriteThatIsNotAdmittedWritesNothing) {
  admit = [] { return false; };
  const auto [status, outcome] = write(target, source.span());
  EXPECT_EQ(status.kind(), StatusKind::kFull);
  EXPECT_EQ(outcome, Outcome::kFailed);
  EXPECT_FALSE(std::filesystem::exists(directory / "abc"));
  admit = [] { return true; };
  EXPECT_EQ(write_source(), Outcome::kWritten);
  admit = [] { return false; };  // what is there needs no room
  EXPECT_EQ(write_source(), Outcome::kAlreadyThere);
}

INSTANTIATE_TEST_SUITE_P(Both, DirectFileTest, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
