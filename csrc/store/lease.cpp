#include "store/lease.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>

namespace lmkv {
namespace {

constexpr int kFlags = O_NOFOLLOW | O_CLOEXEC;
constexpr std::size_t kTextBytes = 512;  // longer than a host's name and three numbers

std::int64_t nanoseconds(const timespec& time) {
  return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

std::string text_of(int descriptor) {
  std::array<char, kTextBytes> buffer{};
  const ssize_t got = ::pread(descriptor, buffer.data(), buffer.size(), 0);
  return got > 0 ? std::string(buffer.data(), static_cast<std::size_t>(got)) : std::string();
}

// The last part of a temporary's path is "<host>-<pid>-<random>", which is who we are.
std::string holder_name(const ChunkPaths& paths) {
  std::string name = std::filesystem::path(paths.unique_temporary()).filename();
  std::replace(name.begin(), name.end(), '-', ' ');
  return name;
}

}  // namespace

EvictorLease::EvictorLease(const ChunkPaths& paths, Clock::duration expiry)
    : paths_(paths),
      path_(paths.root() + "/v1/evictor.lease"),
      expiry_(expiry),
      holder_(holder_name(paths)) {}

EvictorLease::Answer EvictorLease::try_acquire() {
  if (held_) return renew() ? Answer::kHeld : Answer::kBusy;
  for (int attempt = 0; attempt < 2; ++attempt) {
    const UniqueFd created(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | kFlags, 0600));
    if (created.get() >= 0) {
      if (!write(created.get())) {
        const int error = errno;
        ::unlink(path_.c_str());
        errno = error;
        return Answer::kFailed;
      }
      held_ = true;
      seen_.reset();
      return Answer::kHeld;
    }
    if (errno != EEXIST) return Answer::kFailed;
    const std::optional<Seen> there = look(path_);
    if (!there) continue;  // given back at this very moment
    const Clock::time_point now = Clock::now();
    if (there != seen_) {
      seen_ = there;
      seen_at_ = now;
    }
    if (now - seen_at_ < expiry_ || !take_away(*there)) return Answer::kBusy;
    seen_.reset();
  }
  return Answer::kBusy;
}

std::optional<EvictorLease::Seen> EvictorLease::look(const std::string& path) {
  Seen seen;
  struct stat status{};
  // Opened where we may: an NFS client asks the server for fresh attributes at open.
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | kFlags));
  if (file.get() >= 0) seen.text = text_of(file.get());
  if (::fstatat(AT_FDCWD, path.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) return std::nullopt;
  seen.inode = status.st_ino;
  seen.modified_ns = nanoseconds(status.st_mtim);
  return seen;
}

// Of several who find the same holder dead one moves its file away; who comes later moves nothing,
// or the lease of the first, and then puts that back.
bool EvictorLease::take_away(const Seen& dead) {
  const std::string aside = paths_.unique_temporary();
  if (::rename(path_.c_str(), aside.c_str()) != 0) return errno == ENOENT;
  const bool right = look(aside) == dead;
  if (!right) [[maybe_unused]]
    const int put_back = ::link(aside.c_str(), path_.c_str());
  ::unlink(aside.c_str());
  return right;
}

bool EvictorLease::write(int descriptor) {
  const std::string text = holder_ + " " + std::to_string(++beat_) + "\n";
  struct stat status{};
  if (::pwrite(descriptor, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      ::fsync(descriptor) != 0 || ::fstat(descriptor, &status) != 0) {
    return false;
  }
  renewed_ns_ = nanoseconds(status.st_ctim);
  renewed_at_ = Clock::now();
  return true;
}

std::int64_t EvictorLease::filesystem_now_ns() const {
  const std::chrono::nanoseconds since = Clock::now() - renewed_at_;
  return renewed_ns_ + since.count();
}

UniqueFd EvictorLease::open_own() {
  UniqueFd file(::open(path_.c_str(), O_RDWR | kFlags));
  if (file.get() >= 0 && !text_of(file.get()).starts_with(holder_ + " ")) file = UniqueFd();
  return file;
}

bool EvictorLease::renew() {
  if (!held_) return false;
  if (Clock::now() - renewed_at_ < expiry_ / 4) return true;
  const UniqueFd file = open_own();
  held_ = file.get() >= 0 && write(file.get());
  return held_;
}

void EvictorLease::release() {
  if (!held_) return;
  held_ = false;
  if (open_own().get() >= 0) ::unlink(path_.c_str());
}

}  // namespace lmkv
