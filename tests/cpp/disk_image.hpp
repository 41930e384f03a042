// A tree of files in memory, to be written to a disk.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "chunk_tree.hpp"
#include "common/checksum.hpp"
#include "support.hpp"

namespace lmkv::test {

struct DiskImage {
  struct File {
    std::vector<std::byte> bytes;
    std::int64_t modified_ns = 0;
  };
  // Paths are those below the root.
  std::set<std::string> directories;
  std::map<std::string, File> files;

  // Whether something may be made at `path`: its directory is there.
  [[nodiscard]] bool has_place_for(const std::string& path) const {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos || directories.contains(path.substr(0, slash));
  }

  static DiskImage of(const std::filesystem::path& root) {
    DiskImage image;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
      const std::string path = entry.path().lexically_relative(root);
      if (entry.is_directory()) {
        image.directories.insert(path);
      } else {
        image.files[path] = {bytes_of_file(entry.path()), modified_ns(entry.path())};
      }
    }
    return image;
  }

  // In place of all that is in `root`. Every file is as old as it says, and `age` more.
  void write_to(const std::filesystem::path& root, std::chrono::nanoseconds age) const {
    for (const auto& entry : std::filesystem::directory_iterator(root)) {
      std::filesystem::remove_all(entry.path());
    }
    for (const std::string& path : directories) {  // parents before their children
      std::filesystem::create_directory(root / path);
    }
    for (const auto& [path, file] : files) {
      write_file(root / path, file.bytes);
      const std::int64_t when = file.modified_ns - age.count();
      constexpr std::int64_t kSecond = 1'000'000'000;
      const timespec time{when / kSecond, when % kSecond};
      const timespec times[2] = {time, time};
      if (::utimensat(AT_FDCWD, (root / path).c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
        throw std::runtime_error("utimensat " + path);
      }
    }
  }

  // Of names and bytes: equal trees have equal ones.
  [[nodiscard]] std::uint64_t fingerprint() const {
    Xxh3Stream sum;
    for (const std::string& path : directories) sum.add(path.data(), path.size() + 1);
    for (const auto& [path, file] : files) {
      const std::size_t size = file.bytes.size();
      sum.add(path.data(), path.size() + 1);
      sum.add(&size, sizeof size);
      sum.add(file.bytes.data(), size);
    }
    return sum.value();
  }
};

}  // namespace lmkv::test
