// Who goes first at the disk: turns between groups, loads before stores, what is cancelled.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fault_engine.hpp"
#include "holding_engine.hpp"
#include "io/direct_file.hpp"
#include "io/root_probe.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kFileBytes = 4 * kPageBytes;

class FileLanes : public ::testing::TestWithParam<IoEngineChoice> {
 protected:
  FileLanes() {
    options.request_bytes = kFileBytes;
    options.place = probe_root(directory.path(), DirectIoChoice::kOff).place;
    options.root = directory.path();
    options.caching = Caching::kBuffered;
    test::fill_random(buffer.span(), 1);
    for (int i = 0; i < 10; ++i) test::write_file(directory / std::to_string(i), buffer.span());
  }
  ~FileLanes() override {
    disk->release();
    files->shutdown();
  }

  void start() {
    auto watched = std::make_unique<test::FaultEngine>(
        start_io_engine(GetParam(), 1).engine, [this](Operation& operation) -> std::optional<int> {
          if (operation.kind == OperationKind::kOpen && (operation.flags & O_CREAT) == 0) {
            begun.push_back(std::filesystem::path(operation.path).filename());
          }
          return std::nullopt;
        });
    auto holding = std::make_unique<test::HoldingEngine>(std::move(watched));
    disk = holding.get();
    engine = std::move(holding);
    files = std::make_unique<FileIo>(*engine, options);
  }
  void read(const std::string& name, std::uint64_t group) {
    files->read({directory / name, sinks.emplace_back(kFileBytes).data(), kFileBytes,
                 [this, name](const Status& status) {
                   const std::lock_guard lock(mutex);
                   ++ended;
                   if (!status.is_ok()) failed.push_back(name + ": " + status.message());
                 },
                 group});
  }
  void write(const std::string& name) {
    FileWrite request;
    request.path = directory / name;
    request.temporary = directory / ("." + name);
    request.buffer = buffer.data();
    request.bytes = kFileBytes;
    request.done = [](const Status& status, FileWrite::Outcome) {
      EXPECT_TRUE(status.is_ok() || status.kind() == StatusKind::kCancelled) << status.message();
    };
    files->write(std::move(request));
  }
  bool eventually_held(std::size_t count) {
    for (int i = 0; i < 20'000 && disk->held() != count; ++i) std::this_thread::sleep_for(1ms);
    return disk->held() == count;
  }
  void wait_for_ended(std::size_t count) {
    for (int i = 0; i < 20'000; ++i) {
      {
        const std::lock_guard lock(mutex);
        if (ended >= count) return;
      }
      std::this_thread::sleep_for(1ms);
    }
    FAIL() << "reads did not end";
  }

  test::TemporaryDirectory directory;
  test::PageBuffer buffer{kFileBytes};
  std::deque<test::PageBuffer> sinks;  // one a read
  FileIoOptions options;
  std::mutex mutex;
  std::size_t ended = 0;            // reads; guarded by mutex, as the next
  std::vector<std::string> failed;  // reads, and why
  std::vector<std::string> begun;   // reads, in that order; written by one at a time
  test::HoldingEngine* disk = nullptr;
  std::unique_ptr<IoEngine> engine;
  std::unique_ptr<FileIo> files;
};

TEST_P(FileLanes, ReadsOfSeveralGroupsTakeTurns) {
  options.read_depth = 1;  // one file at a time
  start();
  disk->hold(OperationKind::kStat);  // the first operation of a read
  for (const char* name : {"0", "1", "2", "3"}) read(name, 1);
  for (const char* name : {"4", "5"}) read(name, 2);
  ASSERT_TRUE(eventually_held(1));
  disk->release();
  wait_for_ended(6);
  files->shutdown();
  EXPECT_EQ(begun, (std::vector<std::string>{"0", "1", "4", "2", "5", "3"}));
}

TEST_P(FileLanes, AReadGivesItsDepthBackRequestByRequest) {
  options.request_bytes = kPageBytes;
  options.read_depth = 6 * kPageBytes;
  start();
  disk->hold(OperationKind::kRead);
  read("0", 1);
  read("1", 2);
  ASSERT_TRUE(eventually_held(4));
  EXPECT_EQ(files->read_bytes_in_flight(), 4 * kPageBytes);
  disk->release(1);
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(disk->held(), 3U) << "three pages and four more are too many";
  disk->release(1);
  ASSERT_TRUE(eventually_held(2 + 4));
  EXPECT_EQ(files->read_bytes_in_flight(), 6 * kPageBytes);
  disk->release();
  wait_for_ended(2);
  files->shutdown();
  EXPECT_TRUE(failed.empty());
  EXPECT_EQ(files->read_bytes_in_flight(), 0U);
  EXPECT_FALSE(files->is_reading());
}

TEST_P(FileLanes, TheNextReadBeginsBeforeTheLastIsAnswered) {
  options.read_depth = 1;
  start();
  disk->hold(OperationKind::kDefer);
  read("0", 1);
  read("1", 2);
  ASSERT_TRUE(eventually_held(2));
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(ended, 0U);
  }
  EXPECT_FALSE(files->is_reading());
  EXPECT_FALSE(files->wait_idle(std::chrono::milliseconds(1))) << "somebody waits for the answer";
  disk->release();
  wait_for_ended(2);
}

TEST_P(FileLanes, CancelEndsWhatHasNotBegunOfOneGroup) {
  options.read_depth = 1;
  start();
  disk->hold(OperationKind::kStat);
  for (const char* name : {"0", "1", "2"}) read(name, 1);
  read("4", 2);
  ASSERT_TRUE(eventually_held(1));
  files->cancel(1);
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(failed, (std::vector<std::string>{"1: cancelled", "2: cancelled"}));
  }
  files->cancel(3);  // nobody's
  disk->release();
  wait_for_ended(4);
  files->shutdown();
  EXPECT_EQ(begun, (std::vector<std::string>{"0", "4"}));
}

TEST_P(FileLanes, WritesGetAQuarterOfTheirDepthWhileReadsAreInFlight) {
  options.write_depth = 8 * kFileBytes;
  start();
  disk->hold(OperationKind::kRead);
  disk->hold(OperationKind::kWrite);
  for (int i = 0; i < 20; ++i) write("out" + std::to_string(i));
  ASSERT_TRUE(eventually_held(8));
  disk->release();
  for (int i = 0; i < 20'000 && files->write_bytes_in_flight() > 0; ++i) {
    std::this_thread::sleep_for(1ms);
  }

  disk->hold(OperationKind::kRead);
  read("0", 1);
  ASSERT_TRUE(eventually_held(1));
  disk->hold(OperationKind::kWrite);
  for (int i = 20; i < 40; ++i) write("out" + std::to_string(i));
  ASSERT_TRUE(eventually_held(1 + 2));
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(disk->held(), 3U);
  EXPECT_EQ(files->write_bytes_in_flight(), 2 * kFileBytes);
}

TEST_P(FileLanes, WritesThatGaveWayToQueuedReadsGoOnWhenTheseAreCancelled) {
  options.read_depth = 1;
  options.write_depth = 8 * kFileBytes;
  start();
  disk->hold(OperationKind::kStat);  // the first operation of both
  read("0", 1);
  read("1", 2);  // queued, so that one write is all that goes
  for (int i = 0; i < 4; ++i) write("out" + std::to_string(i));
  ASSERT_TRUE(eventually_held(2));
  files->cancel(2);
  EXPECT_TRUE(eventually_held(3)) << "a quarter of the depth beside the read in flight";
}

INSTANTIATE_TEST_SUITE_P(Both, FileLanes, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
