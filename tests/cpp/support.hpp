// What several tests need: a directory of their own, page-aligned memory, random bytes.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <new>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/types.hpp"
#include "common/unique_fd.hpp"
#include "io/io_engine.hpp"
#include "store/tree_scan.hpp"

namespace lmkv::test {

class TemporaryDirectory {
 public:
  // On the build's own filesystem: /tmp may be a tmpfs, and O_DIRECT is to be tried on a disk.
  TemporaryDirectory() : TemporaryDirectory(std::filesystem::current_path()) {}
  explicit TemporaryDirectory(const std::filesystem::path& place) {
    std::string pattern = place / "lmkv-test-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = pattern;
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

class PageBuffer {
 public:
  explicit PageBuffer(std::size_t bytes)
      : bytes_(bytes), data_(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;
  ~PageBuffer() { std::free(data_); }
  [[nodiscard]] std::span<std::byte> span() const { return {data_, bytes_}; }
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return bytes_; }

 private:
  std::size_t bytes_;
  std::byte* data_;
};

inline void fill_random(std::span<std::byte> bytes, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(generator()); });
}

template <typename D>
D digest_of(std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  D digest;
  std::generate(digest.bytes.begin(), digest.bytes.end(),
                [&] { return static_cast<std::uint8_t>(generator()); });
  return digest;
}

// Both I/O engines, or the thread engine alone where the kernel, a container's seccomp profile or
// the build has no io_uring: lmkv works there too.
inline std::vector<IoEngineChoice> usable_engines() {
  try {
    static_cast<void>(make_uring_engine(1));
    return {IoEngineChoice::kUring, IoEngineChoice::kThreads};
  } catch (const std::runtime_error& refused) {
    std::cout << "io_uring is not tested: " << refused.what() << "\n";
    return {IoEngineChoice::kThreads};
  }
}

inline std::string engine_name(const ::testing::TestParamInfo<IoEngineChoice>& info) {
  return info.param == IoEngineChoice::kUring ? "io_uring" : "threads";
}

inline std::size_t open_descriptors() {
  const std::filesystem::directory_iterator descriptors("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(descriptors), end(descriptors)));
}

// How many of a file's pages are in the page cache.
inline std::size_t pages_cached(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const std::size_t bytes = std::filesystem::file_size(path);
  void* const mapping = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapping == MAP_FAILED) throw std::runtime_error("mmap");
  std::vector<unsigned char> resident((bytes + kPageBytes - 1) / kPageBytes);
  const int result = ::mincore(mapping, bytes, resident.data());
  ::munmap(mapping, bytes);
  if (result != 0) throw std::runtime_error("mincore");
  return static_cast<std::size_t>(std::count_if(
      resident.begin(), resident.end(), [](unsigned char page) { return (page & 1U) != 0; }));
}

inline std::vector<std::byte> bytes_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  std::vector<std::byte> bytes(file ? static_cast<std::size_t>(file.tellg()) : 0);
  file.seekg(0);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

inline void write_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

inline std::size_t count_files(const std::filesystem::path& root) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.is_regular_file()) ++count;
  }
  return count;
}

// Files that are being written, by their names, at any depth.
inline std::size_t count_temporaries(const std::filesystem::path& root) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (is_unfinished_name(entry.path().filename().string())) ++count;
  }
  return count;
}

}  // namespace lmkv::test
