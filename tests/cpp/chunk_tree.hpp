// A root with chunk files of chosen sizes and ages in it, for the tests of eviction.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "store/directory.hpp"
#include "support.hpp"

namespace lmkv::test {

class ChunkTree {
 public:
  using Age = std::chrono::nanoseconds;

  [[nodiscard]] std::string root() const { return directory_.path(); }
  [[nodiscard]] ChunkPaths paths(std::uint64_t name = 1, std::uint32_t rank = 0) const {
    return {root(), digest_of<NamespaceDigest>(name), rank};
  }
  [[nodiscard]] static ChunkKey key(std::uint64_t n) { return digest_of<ChunkKey>(n); }

  // Chunk `n` of `bytes` (whole pages), used `age` ago.
  std::string put(std::uint64_t n, std::size_t bytes, Age age, std::uint64_t name = 1,
                  std::uint32_t rank = 0) {
    const ChunkPaths here = paths(name, rank);
    make_tree(here);
    const std::string path = here.chunk(key(n));
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    return put_file(path, bytes, age);
  }
  std::string put_file(const std::string& path, std::size_t bytes, Age age = Age(0)) {
    write_file(path, std::vector<std::byte>(bytes, std::byte{1}));
    // ext4 allocates late otherwise, and st_blocks is what is counted.
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0 || ::fsync(file) != 0) throw std::runtime_error("fsync " + path);
    ::close(file);
    set_used(path, age);
    return path;
  }
  static void set_used(const std::string& path, Age ago) {
    const auto when = std::chrono::system_clock::now().time_since_epoch() - ago;
    // Of last digits that no stamp has: what looks like one says how often the file was used.
    const auto nanoseconds = std::chrono::nanoseconds(when).count() / 1000 * 1000 + 999;
    const timespec times[2] = {{0, UTIME_OMIT},
                               {nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000}};
    if (::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
      throw std::runtime_error("utimensat " + path);
    }
  }
  [[nodiscard]] bool has(std::uint64_t n, std::uint64_t name = 1, std::uint32_t rank = 0) const {
    return std::filesystem::exists(paths(name, rank).chunk(key(n)));
  }

 private:
  TemporaryDirectory directory_;
};

inline std::int64_t modified_ns(const std::string& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) throw std::runtime_error("lstat " + path);
  return status.st_mtim.tv_sec * 1'000'000'000LL + status.st_mtim.tv_nsec;
}

// Whether `condition` comes true within twenty seconds.
template <typename F>
bool eventually(F&& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::usleep(2000);
  }
  return true;
}

}  // namespace lmkv::test
