#include "store/directory.hpp"

#include <dirent.h>
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
#include "common/posix.hpp"
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

std::string ChunkPaths::namespace_name() const {
  return namespace_directory_.substr(namespace_directory_.rfind('/') + 1);
}

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

void make_root(const std::string& root, Access access) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::is_directory(root, error)) return;
  // What is above it is not ours and has the usual mode.
  fs::create_directories(fs::path(root).parent_path(), error);
  if (!error && make_directory(AT_FDCWD, root.c_str(), access) != 0 && errno != EEXIST) {
    error.assign(errno, std::generic_category());
  }
  if (!error && !fs::is_directory(root, error) && !error) {
    error = std::make_error_code(std::errc::not_a_directory);
  }
  if (error) throw std::runtime_error("cannot make the directory " + root + ": " + error.message());
}

namespace {

// One below `root`, or itself, to be read.
UniqueFd open_directory(const std::string& root, const std::string& directory) {
  const UniqueFd place = enter(root, directory);
  return UniqueFd(::openat(place.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

// ext2 to ext4 put the children of a directory so marked into block groups all over the disk, as
// they do with those of their root. Otherwise all chunks lie in a few groups, and where eviction
// removes some, each new file looks at every inode that was freed there in the last minutes
// (docs/decisions/0011). Other filesystems have no such mark, and no such trouble.
void spread_children(const ChunkPaths& paths) {
  const UniqueFd opened = open_directory(paths.root(), paths.rank_directory());
  int flags = 0;
  if (opened.get() < 0 || ::ioctl(opened.get(), FS_IOC_GETFLAGS, &flags) != 0) return;
  if ((flags & FS_TOPDIR_FL) != 0) return;
  flags |= FS_TOPDIR_FL;
  // A matter of speed: whoever refuses it is as good without.
  [[maybe_unused]] const int result = ::ioctl(opened.get(), FS_IOC_SETFLAGS, &flags);
}

bool make_one(const std::string& root, const std::string& directory, Access access) {
  const std::filesystem::path path(directory);
  const UniqueFd parent = enter(root, path.parent_path().native());
  if (parent.get() < 0) return false;
  const int made = make_directory(parent.get(), path.filename().c_str(), access);
  if (made != 0 && errno != EEXIST) return false;
  return enter(root, directory).get() >= 0;
}

// The first that is not there in the end, with errno; empty if all are.
std::string first_not_made(const std::string& root, const std::vector<std::string>& directories,
                           Access access) {
  for (const std::string& directory : directories) {
    if (!make_one(root, directory, access)) return directory;
  }
  return {};
}

// A root that somebody else has made need not hand its group on (setgid).
void take_group_of_root(const ChunkPaths& paths, const std::string& directory) {
  const UniqueFd root(::open(paths.root().c_str(), kEnterFlags));
  const UniqueFd opened = open_directory(paths.root(), directory);
  struct stat above{};
  struct stat found{};
  if (::fstat(root.get(), &above) != 0 || ::fstat(opened.get(), &found) != 0) return;
  if (found.st_uid != ::geteuid() || found.st_gid == above.st_gid) return;
  constexpr uid_t kSameOwner = static_cast<uid_t>(-1);
  [[maybe_unused]] const int result = ::fchown(opened.get(), kSameOwner, above.st_gid);
}

// Of directories that are there: one that was made for its owner alone, or whose maker was killed
// before it had its mode. Only the owner can; for another user's the answer is no.
void mend_modes(const ChunkPaths& paths, const std::vector<std::string>& directories) {
  const auto mend = [](int parent, const char* name) {
    const mode_t mode = directory_mode_of(Access::kGroup);
    struct stat found{};
    const bool wrong = ::fstatat(parent, name, &found, AT_SYMLINK_NOFOLLOW) == 0 &&
                       S_ISDIR(found.st_mode) && found.st_uid == ::geteuid() &&
                       (found.st_mode & 07777U) != mode;
    if (!wrong) return;
    [[maybe_unused]] const int result = set_directory_mode(parent, name, mode);
  };
  for (const std::string& directory : directories) {
    mend(enter(paths.root(), directory).get(), ".");
  }
  UniqueFd opened = open_directory(paths.root(), paths.rank_directory());
  DIR* const stream = ::fdopendir(opened.get());
  if (stream == nullptr) return;
  [[maybe_unused]] const int streams_own = opened.release();
  while (const dirent* const entry = ::readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") mend(::dirfd(stream), entry->d_name);
  }
  ::closedir(stream);
}

std::vector<std::string> directories_for_all(const ChunkPaths& paths) {
  std::vector<std::string> directories = paths.directories_for(ChunkKey{});
  directories.pop_back();  // the key's own directory is made when it is needed
  return directories;
}

}  // namespace

void make_tree(const ChunkPaths& paths, Access access) {
  make_root(paths.root(), access);
  const std::vector<std::string> directories = directories_for_all(paths);
  for (const std::string& directory : directories) {
    if (!make_one(paths.root(), directory, access)) {
      if (errno == ELOOP) {
        throw std::runtime_error(directory +
                                 " is a symbolic link, and none is followed below a root: name the "
                                 "directory that it leads to as the root instead");
      }
      throw std::runtime_error("cannot make the directory " + directory + ": " +
                               std::strerror(errno));
    }
    if (access == Access::kGroup && directory == directories.front()) {
      take_group_of_root(paths, directory);
    }
  }
  if (access == Access::kGroup) mend_modes(paths, directories);
  spread_children(paths);
}

bool make_directories(const ChunkPaths& paths, Access access) {
  return first_not_made(paths.root(), directories_for_all(paths), access).empty();
}

bool make_directories(const ChunkPaths& paths, const ChunkKey& key, Access access) {
  return first_not_made(paths.root(), paths.directories_for(key), access).empty();
}

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

bool Directory::is_in(const std::vector<ChunkPaths>& ranks, std::vector<OpenRank>& open,
                      const ChunkKey& key) {
  if (open.empty()) {
    for (const ChunkPaths& paths : ranks) {
      OpenRank& rank = open.emplace_back();
      rank.directory = enter(paths.root(), paths.rank_directory());
      struct statx status{};
      // Network filesystems have no block device, whose numbers never have major 0.
      rank.may_be_remote =
          ::statx(rank.directory.get(), "", AT_EMPTY_PATH, STATX_TYPE, &status) == 0 &&
          status.stx_dev_major == 0;
    }
  }
  const std::string path = ChunkPaths::chunk_below(key);
  return std::ranges::all_of(open, [&](const OpenRank& rank) { return has(rank, path); });
}

bool Directory::has(const OpenRank& rank, const std::string& path) {
  const int directory = rank.directory.get();
  // Not stat, which reads the attributes as well: over NFS, from the server. And no flags, which
  // are another system call (faccessat2) that older seccomp profiles refuse.
  const auto is_there = [&] { return ::faccessat(directory, path.c_str(), F_OK, 0) == 0; };
  if (directory < 0) return false;
  if (is_there()) return true;
  if (!rank.may_be_remote) return false;
  // An NFS client remembers that a name was absent until what it knows of the directory expires: a
  // minute (nfs(5), lookupcache). It asks again when the directory is found to have changed. This
  // one is asked for from the server; where it is absent itself, so is the one above it.
  struct statx status{};
  const std::string below = path.substr(0, path.find('/'));
  if (!stat_afresh(directory, below.c_str(), status)) {
    constexpr int kFlags = AT_EMPTY_PATH | AT_STATX_FORCE_SYNC;
    if (::statx(directory, "", kFlags, STATX_BASIC_STATS, &status) != 0) return false;
    if (!stat_afresh(directory, below.c_str(), status)) return false;
  }
  return is_there();
}

std::vector<bool> Directory::present(std::span<const ChunkKey> keys, Until until) const {
  // Paths below a descriptor have two parts to resolve, not all of the root's as well. Opened anew
  // every time: a directory that was removed and made again is another one.
  std::vector<std::vector<OpenRank>> open(roots_.size());
  std::vector<bool> there;
  there.reserve(keys.size());
  for (const ChunkKey& key : keys) {
    const std::size_t index = stripes_.of(key);
    there.push_back(!out_of_service_->at(index).load(std::memory_order_relaxed) &&
                    is_in(roots_[index], open[index], key));
    if (!there.back() && until == Until::kFirstAbsent) break;
  }
  return there;
}

std::size_t Directory::lookup(std::span<const ChunkKey> keys) const {
  const std::vector<bool> there = present(keys, Until::kFirstAbsent);
  return static_cast<std::size_t>(std::count(there.begin(), there.end(), true));
}

}  // namespace lmkv
