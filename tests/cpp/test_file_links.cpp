// Links in the place of directories, whenever they come there: the file tasks go on with the
// directory that they entered, or find the link and stop.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "chunk_tree.hpp"
#include "fault_engine.hpp"
#include "io/direct_file.hpp"
#include "io/root_probe.hpp"
#include "support.hpp"

namespace lmkv {
namespace {

namespace fs = std::filesystem;
using Outcome = FileWrite::Outcome;

constexpr std::size_t kFileBytes = 4 * kPageBytes;

class FileLinks : public ::testing::TestWithParam<IoEngineChoice> {
 protected:
  FileLinks() {
    test::fill_random(source.span(), 1);
    options.root = directory / "root";
    fs::create_directories(options.root);
    options.place = probe_root(options.root, DirectIoChoice::kOff).place;
    options.caching = Caching::kBuffered;
    start({});
  }
  ~FileLinks() override { files.reset(); }

  void start(test::FaultEngine::Fault seen) {
    files.reset();
    engine = start_io_engine(GetParam(), 1).engine;
    if (seen) engine = std::make_unique<test::FaultEngine>(std::move(engine), std::move(seen));
    files = std::make_unique<FileIo>(*engine, options);
  }
  std::pair<Status, Outcome> write() {
    std::promise<std::pair<Status, Outcome>> promise;
    auto result = promise.get_future();
    FileWrite request;
    request.path = target;
    request.temporary = options.root + "/a/b/host-1-0123456789abcdef";
    request.directories = {options.root + "/a", options.root + "/a/b"};
    request.buffer = source.data();
    request.bytes = source.size();
    request.done = [&](Status status, Outcome outcome) {
      promise.set_value({std::move(status), outcome});
    };
    files->write(std::move(request));
    return result.get();
  }
  Status read() {
    std::promise<Status> promise;
    auto result = promise.get_future();
    files->read({target, sink.data(), kFileBytes,
                 [&](Status status) { promise.set_value(std::move(status)); }});
    return result.get();
  }
  Status remove() {
    std::promise<Status> promise;
    auto result = promise.get_future();
    files->remove(target, [&](Status status) { promise.set_value(std::move(status)); });
    return result.get();
  }
  // `place` goes elsewhere, whole, and a link to it comes where it was.
  void exchange(const std::string& place) {
    fs::rename(place, elsewhere);
    fs::create_directory_symlink(elsewhere, place);
  }

  test::TemporaryDirectory directory;
  test::PageBuffer source{kFileBytes};
  test::PageBuffer sink{kFileBytes};
  FileIoOptions options;
  std::string target = directory / "root/a/b/file";
  const std::string elsewhere = directory / "elsewhere";
  std::unique_ptr<IoEngine> engine;
  std::unique_ptr<FileIo> files;
};

TEST_P(FileLinks, BehindALinkNothingIsReadWrittenRenewedOrRemoved) {
  for (const char* place : {"/a", "/a/b"}) {
    ASSERT_EQ(write().second, Outcome::kWritten);
    exchange(options.root + place);
    const std::string there = fs::is_directory(elsewhere + "/b") ? elsewhere + "/b" : elsewhere;
    const std::int64_t modified = test::modified_ns(there + "/file");
    EXPECT_EQ(read().error_number(), ELOOP);
    EXPECT_EQ(remove().error_number(), ELOOP);
    files->touch(target, modified + 1'000'000'000);
    ASSERT_TRUE(test::eventually([&] { return files->touches_failed() > 0; }));
    fs::remove(there + "/file");
    EXPECT_EQ(write().first.error_number(), ELOOP);
    EXPECT_TRUE(fs::is_empty(there));
    start({});
    fs::remove(options.root + place);
    fs::remove_all(elsewhere);
    fs::remove_all(options.root + "/a");
  }
}

TEST_P(FileLinks, DirectoriesAreNotMadeBehindALink) {
  fs::create_directories(elsewhere);
  fs::create_directory_symlink(elsewhere, options.root + "/a");
  const auto [status, outcome] = write();
  EXPECT_EQ(outcome, Outcome::kFailed);
  EXPECT_EQ(status.error_number(), ELOOP);
  EXPECT_TRUE(fs::is_empty(elsewhere));
}

TEST_P(FileLinks, TheRootItselfMayBeALink) {
  // From another filesystem, mostly, as where a disk is mounted elsewhere.
  const std::string link = std::string(fs::is_directory("/dev/shm") ? "/dev/shm" : "/tmp") +
                           "/lmkv-test-" + std::to_string(::getpid());
  fs::rename(options.root, elsewhere);
  fs::create_directory_symlink(elsewhere, link);
  options.root = link;
  start({});
  target = link + "/a/b/file";
  EXPECT_EQ(write().second, Outcome::kWritten);
  EXPECT_TRUE(fs::exists(elsewhere + "/a/b/file"));
  EXPECT_TRUE(read().is_ok());
  EXPECT_TRUE(remove().is_ok());
  fs::remove(link);
}

TEST_P(FileLinks, ALinkThatComesLaterDoesNotLeadAFileElsewhere) {
  // Another directory of the same name comes, with another file in it.
  for (const OperationKind kind :
       {OperationKind::kOpen, OperationKind::kWrite, OperationKind::kRename}) {
    ASSERT_EQ(write().second, Outcome::kWritten);
    ASSERT_TRUE(remove().is_ok());
    const std::string decoy = directory / "decoy";
    fs::create_directories(decoy);
    start([&, is_done = false](Operation& op) mutable -> std::optional<int> {
      if (op.kind == kind && !std::exchange(is_done, true)) {
        fs::rename(options.root + "/a/b", elsewhere);
        fs::create_directory_symlink(decoy, options.root + "/a/b");
      }
      return std::nullopt;
    });
    EXPECT_EQ(write().second, Outcome::kWritten);
    EXPECT_TRUE(fs::is_empty(decoy));
    EXPECT_TRUE(fs::exists(elsewhere + "/file"));
    start({});
    fs::remove(options.root + "/a/b");
    fs::remove_all(elsewhere);
  }
}

INSTANTIATE_TEST_SUITE_P(Both, FileLinks, ::testing::ValuesIn(test::usable_engines()),
                         test::engine_name);

}  // namespace
}  // namespace lmkv
