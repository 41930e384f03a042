#include "store/directory.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "common/enter.hpp"
#include "common/unique_fd.hpp"

namespace lmkv {
namespace {

std::string host_name() {
  std::array<char, 256> buffer{};
  if (::gethostname(buffer.data(), buffer.size() - 1) != 0) return "unknown";
  std::string name(buffer.data());
  std::replace_if(
      name.begin(), name.end(),
      [](unsigned char c) { return std::isalnum(c) == 0 && c != '-' && c != '.'; }, '_');
  return name.empty() ? "unknown" : name;
}

std::string to_hex(std::uint64_t value) {
  std::array<char, 17> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%016llx", static_cast<unsigned long long>(value));
  return buffer.data();
}

std::uint64_t random_start() {
  // Differs between processes and hosts. Not std::random_device, which wants a newer glibc when
  // libstdc++ is linked in. So few bytes come all at once, but a signal may come before them.
  std::uint64_t value = 0;
  while (::getrandom(&value, sizeof value, 0) < 0) {
    if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "getrandom");
  }
  return value;
}

// Hosts may share a name and, in containers, a pid: the random start keeps writers apart.
std::uint64_t next_unique() {
  static std::atomic<std::uint64_t> counter{random_start()};
  return counter.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

ChunkPaths::ChunkPaths(std::string root, const NamespaceDigest& namespace_digest,
                       std::uint32_t rank)
    : root_(std::move(root)),
      version_directory_(root_ + "/v1"),
      namespace_directory_(version_directory_ + "/" + namespace_digest.hex().substr(0, 16)),
      rank_directory_(namespace_directory_ + "/r" + std::to_string(rank)),
      temporary_directory_(rank_directory_ + "/tmp"),
      writer_(host_name() + "-" + std::to_string(::getpid()) + "-") {}

std::string ChunkPaths::chunk(const ChunkKey& key) const {
  return rank_directory_ + "/" + chunk_below(key);
}

std::string ChunkPaths::chunk_below(const ChunkKey& key) {
  const std::string hex = key.hex();
  std::string path;
  path.reserve(hex.size() + 7);
  path.append(hex, 0, 3).append("/").append(hex).append(".kv");
  return path;
}

std::string ChunkPaths::unique_temporary() const {
  return temporary_directory_ + "/" + writer_ + to_hex(next_unique());
}

std::string ChunkPaths::unique_temporary(const ChunkKey& key) const {
  return directory_of(key) + "/" + writer_ + to_hex(next_unique());
}

std::string ChunkPaths::directory_of(const ChunkKey& key) const {
  return rank_directory_ + "/" + key.hex().substr(0, 3);
}

std::vector<std::string> ChunkPaths::directories_for(const ChunkKey& key) const {
  return {version_directory_, namespace_directory_, rank_directory_, temporary_directory_,
          directory_of(key)};
}

void make_root(const std::string& root) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::is_directory(root, error)) return;
  // What is above it is not ours and has the usual mode; the root itself is its owner's alone.
  fs::create_directories(fs::path(root).parent_path(), error);
  if (!error && ::mkdir(root.c_str(), 0700) != 0 && errno != EEXIST) {
    error.assign(errno, std::generic_category());
  }
  if (!error && !fs::is_directory(root, error) && !error) {
    error = std::make_error_code(std::errc::not_a_directory);
  }
  if (error) throw std::runtime_error("cannot make the directory " + root + ": " + error.message());
}

namespace {

// ext2 to ext4 put the children of a directory so marked into block groups all over the disk, as
// they do with those of their root. Otherwise all chunks lie in a few groups, and where eviction
// removes some, each new file looks at every inode that was freed there in the last minutes
// (docs/decisions/0011). Other filesystems have no such mark, and no such trouble.
void spread_children(const std::string& directory) {
  const UniqueFd opened(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  int flags = 0;
  if (opened.get() < 0 || ::ioctl(opened.get(), FS_IOC_GETFLAGS, &flags) != 0) return;
  if ((flags & FS_TOPDIR_FL) != 0) return;
  flags |= FS_TOPDIR_FL;
  // A matter of speed: whoever refuses it is as good without.
  [[maybe_unused]] const int result = ::ioctl(opened.get(), FS_IOC_SETFLAGS, &flags);
}

bool make_directory(const std::string& root, const std::string& directory) {
  const std::filesystem::path path(directory);
  const UniqueFd parent = enter(root, path.parent_path().native());
  if (parent.get() < 0) return false;
  if (::mkdirat(parent.get(), path.filename().c_str(), 0700) != 0 && errno != EEXIST) return false;
  return enter(root, directory).get() >= 0;
}

// The first that is not there in the end, with errno; empty if all are.
std::string first_not_made(const ChunkPaths& paths) {
  std::vector<std::string> directories = paths.directories_for(ChunkKey{});
  directories.pop_back();  // the key's own directory is made when it is needed
  for (const std::string& directory : directories) {
    if (!make_directory(paths.root(), directory)) return directory;
  }
  return {};
}

}  // namespace

void make_tree(const ChunkPaths& paths) {
  make_root(paths.root());
  if (const std::string missing = first_not_made(paths); !missing.empty()) {
    throw std::runtime_error(
        "cannot make the directory " + missing + ": " +
        (errno == ELOOP ? "a symbolic link is in its place or on the way" : std::strerror(errno)));
  }
  spread_children(paths.rank_directory());
}

bool make_directories(const ChunkPaths& paths) { return first_not_made(paths).empty(); }

Directory::Directory(const std::vector<std::string>& roots, const NamespaceDigest& namespace_digest,
                     std::uint32_t ranks)
    : stripes_(roots),
      roots_(roots.size()),
      out_of_service_(std::make_shared<std::vector<std::atomic<bool>>>(roots.size())) {
  for (std::size_t i = 0; i < roots.size(); ++i) {
    for (std::uint32_t rank = 0; rank < ranks; ++rank) {
      roots_[i].emplace_back(roots[i], namespace_digest, rank);
    }
  }
}

void Directory::set_out_of_service(const std::vector<std::size_t>& roots) {
  for (std::size_t i = 0; i < roots_.size(); ++i) {
    const bool is_out = std::ranges::find(roots, i) != roots.end();
    out_of_service_->at(i).store(is_out, std::memory_order_relaxed);
  }
}

bool Directory::is_in(const std::vector<ChunkPaths>& ranks, std::vector<UniqueFd>& directories,
                      const ChunkKey& key) {
  if (directories.empty()) {
    for (const ChunkPaths& paths : ranks) {
      directories.push_back(enter(paths.root(), paths.rank_directory()));
    }
  }
  const std::string path = ChunkPaths::chunk_below(key);
  // Not stat, which reads the attributes as well: over NFS, from the server. And no flags, which
  // are another system call (faccessat2) that older seccomp profiles refuse.
  return std::ranges::all_of(directories, [&](const UniqueFd& fd) {
    return fd.get() >= 0 && ::faccessat(fd.get(), path.c_str(), F_OK, 0) == 0;
  });
}

std::vector<bool> Directory::present(std::span<const ChunkKey> keys, Until until) const {
  // Paths below a descriptor have two parts to resolve, not all of the root's as well. Opened anew
  // every time: a directory that was removed and made again is another one.
  std::vector<std::vector<UniqueFd>> directories(roots_.size());
  std::vector<bool> there;
  there.reserve(keys.size());
  for (const ChunkKey& key : keys) {
    const std::size_t index = stripes_.of(key);
    there.push_back(!out_of_service_->at(index).load(std::memory_order_relaxed) &&
                    is_in(roots_[index], directories[index], key));
    if (!there.back() && until == Until::kFirstAbsent) break;
  }
  return there;
}

std::size_t Directory::lookup(std::span<const ChunkKey> keys) const {
  const std::vector<bool> there = present(keys, Until::kFirstAbsent);
  return static_cast<std::size_t>(std::count(there.begin(), there.end(), true));
}

}  // namespace lmkv
