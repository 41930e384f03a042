// Files through either I/O engine, in a directory of their own, with what a test puts in between.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "fault_engine.hpp"
#include "io/direct_file.hpp"
#include "io/root_probe.hpp"
#include "support.hpp"

namespace lmkv::test {

inline constexpr std::size_t kFileBytes = 40 * kPageBytes;
inline constexpr std::size_t kRequestBytes = 16 * kPageBytes;  // so a file is three requests

class FileIoTest : public ::testing::TestWithParam<IoEngineChoice> {
 protected:
  FileIoTest() {
    fill_random(source.span(), 1);
    options.request_bytes = kRequestBytes;
    const RootProbe probe = probe_root(directory.path(), DirectIoChoice::kAuto);
    options.caching = probe.caching;
    options.place = probe.place;
    options.root = directory.path();
    start({});
  }

  void start(FaultEngine::Fault fault) {
    files.reset();
    engine = start_io_engine(GetParam(), 1).engine;
    if (fault) engine = std::make_unique<FaultEngine>(std::move(engine), std::move(fault));
    files = std::make_unique<FileIo>(*engine, options);
  }

  std::pair<Status, FileWrite::Outcome> write(const std::string& path,
                                              std::span<const std::byte> bytes) {
    std::promise<std::pair<Status, FileWrite::Outcome>> promise;
    auto result = promise.get_future();
    FileWrite request;
    request.path = path;
    request.temporary = beside(path, "w" + std::to_string(++temporaries));
    request.directories = {std::filesystem::path(path).parent_path()};
    request.buffer = bytes.data();
    request.bytes = bytes.size();
    request.modified_ns = modified_ns;
    request.admit = admit;
    request.done = [&](Status status, FileWrite::Outcome outcome) {
      promise.set_value({std::move(status), outcome});
    };
    files->write(std::move(request));
    return result.get();
  }
  FileWrite::Outcome write_source() { return write(target, source.span()).second; }

  Status read(const std::string& path, std::size_t bytes = kFileBytes) {
    fill_random(sink.span(), 99);
    std::promise<Status> promise;
    auto result = promise.get_future();
    files->read({path, sink.data(), bytes, [&](Status status) { promise.set_value(status); }});
    return result.get();
  }

  void expect_source_at(const std::string& path) {
    const std::vector<std::byte> found = bytes_of_file(path);
    ASSERT_EQ(found.size(), source.size());
    EXPECT_TRUE(std::equal(found.begin(), found.end(), source.data()));
  }
  void expect_read_source() {
    const Status status = read(target);
    EXPECT_TRUE(status.is_ok()) << status.message();
    EXPECT_TRUE(std::equal(sink.data(), sink.data() + kFileBytes, source.data()));
  }
  static std::string beside(const std::string& path, const std::string& name) {
    return std::filesystem::path(path).parent_path() / ("tmp-1-" + name);
  }
  std::size_t leftovers() {
    std::size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory.path())) {
      if (entry.path().filename().string().starts_with("tmp-1-")) ++count;
    }
    return count;
  }

  TemporaryDirectory directory;
  const std::string target = directory / "abc/file";
  PageBuffer source{kFileBytes};
  PageBuffer sink{kFileBytes};
  FileIoOptions options;
  int temporaries = 0;
  std::int64_t modified_ns = 0;
  std::function<bool()> admit;
  std::unique_ptr<IoEngine> engine;
  std::unique_ptr<FileIo> files;
};

}  // namespace lmkv::test
