#include "io/root_probe.hpp"

#include <fcntl.h>
#include <linux/stat.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "common/types.hpp"
#include "common/unique_fd.hpp"
#include "io/filesystem_kind.hpp"

namespace lmkv {
namespace {

class Scratch {
 public:
  explicit Scratch(const std::string& directory)
      : path_(directory + "/.probe-" + std::to_string(::getpid()) + "-XXXXXX") {
    const UniqueFd created(::mkostemp(path_.data(), O_CLOEXEC));
    if (created.get() < 0) throw std::runtime_error(failure("create"));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::unlink(path_.c_str()); }

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string failure(const char* what) const {
    return std::string(what) + " " + path_ + ": " + std::strerror(errno);
  }

 private:
  std::string path_;
};

// Writes and reads back one page; returns an empty string or what went wrong.
std::string try_page(const Scratch& scratch, Caching caching) {
  struct alignas(kPageBytes) Page {
    std::array<unsigned char, kPageBytes> bytes;
  };
  const auto written = std::make_unique<Page>();
  const auto read = std::make_unique<Page>();
  for (std::size_t i = 0; i < kPageBytes; ++i) {
    written->bytes[i] = static_cast<unsigned char>(i * 131 + 17);
  }
  const int direct = caching == Caching::kDirect ? O_DIRECT : 0;
  const UniqueFd file(::open(scratch.path().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | direct));
  if (file.get() < 0) return scratch.failure("open");
  const auto page = static_cast<ssize_t>(kPageBytes);
  errno = EIO;  // what a short transfer, which sets none, amounts to
  if (::pwrite(file.get(), written.get(), kPageBytes, 0) != page) return scratch.failure("write");
  if (::pread(file.get(), read.get(), kPageBytes, 0) != page) return scratch.failure("read");
  if (written->bytes != read->bytes) return "read back other bytes than written";
  return {};
}

// Empty when page-aligned direct I/O is fine as far as the filesystem tells (Linux 6.1 and newer).
std::string alignment_objection([[maybe_unused]] const std::string& path) {
#ifdef STATX_DIOALIGN
  struct statx status{};
  if (::statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0) {
    if (status.stx_dio_offset_align == 0) return "the filesystem does not support O_DIRECT";
    if (kPageBytes % status.stx_dio_offset_align != 0 ||
        kPageBytes % status.stx_dio_mem_align != 0) {
      return "O_DIRECT here wants a larger alignment than 4096 bytes";
    }
  }
#endif
  return {};
}

// One step up at a time, as the kernel sees it: a link on the path may lead elsewhere.
MountPlace find_place(const std::string& directory) {
  constexpr int kFlags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  MountPlace place;
  UniqueFd here(::open(directory.c_str(), kFlags));
  std::uint64_t last_inode = 0;
  for (bool is_first = true;; is_first = false) {
    struct statx status{};
    if (here.get() < 0 || ::statx(here.get(), "", AT_EMPTY_PATH, STATX_INO, &status) != 0) {
      // What is above may be nobody's business.
      if (!is_first) return place;
      throw std::runtime_error("stat " + directory + ": " + std::strerror(errno));
    }
    const FilesystemId id{status.stx_dev_major, status.stx_dev_minor};
    const bool is_top = !is_first && status.stx_ino == last_inode &&
                        id == (place.above.empty() ? place.own : place.above.back());
    if (is_top) return place;
    if (is_first) {
      place.own = id;
    } else {
      place.above.push_back(id);
    }
    last_inode = status.stx_ino;
    here = UniqueFd(::openat(here.get(), "..", kFlags));
  }
}

}  // namespace

RootProbe probe_root(const std::string& directory, DirectIoChoice choice, SharedChoice shared) {
  RootProbe probe;
  struct statfs filesystem{};
  if (::statfs(directory.c_str(), &filesystem) != 0) {
    throw std::runtime_error("statfs " + directory + ": " + std::strerror(errno));
  }
  probe.place = find_place(directory);
  const FilesystemKind kind =
      filesystem_kind(static_cast<std::uint32_t>(filesystem.f_type), probe.place.own);
  probe.filesystem = kind.name;
  if (kind.is_fuse) probe.submission = Submission::kBlocks;
  const bool automatic = shared == SharedChoice::kAuto;
  const bool is_shared = automatic ? kind.is_shared : shared == SharedChoice::kShared;
  probe.is_remote = kind.is_shared || is_shared;
  probe.publish = is_shared ? Publish::kSyncThenRename : Publish::kRename;
  probe.shared_reason = automatic ? kind.reason : "asked for";

  const Scratch scratch(directory);
  if (const std::string error = try_page(scratch, Caching::kBuffered); !error.empty()) {
    throw std::runtime_error(error);
  }
  if (choice == DirectIoChoice::kOff) {
    probe.reason = "switched off";
    return probe;
  }
  std::string objection = alignment_objection(scratch.path());
  if (objection.empty()) objection = try_page(Scratch(directory), Caching::kDirect);
  if (objection.empty()) {
    probe.caching = Caching::kDirect;
    probe.reason = "the filesystem takes it";
  } else if (choice == DirectIoChoice::kOn) {
    throw std::runtime_error("direct I/O was asked for and is refused: " + objection);
  } else {
    probe.reason = objection;
  }
  return probe;
}

}  // namespace lmkv
