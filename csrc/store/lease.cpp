#include "store/lease.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "common/posix.hpp"
#include "store/file_times.hpp"

namespace lmkv {
namespace {

constexpr int kFlags = O_NOFOLLOW | O_CLOEXEC;
constexpr std::size_t kTextBytes = 512;  // longer than a host's name and three numbers

std::string text_of(int descriptor) {
  std::array<char, kTextBytes> buffer{};
  const ssize_t got = ::pread(descriptor, buffer.data(), buffer.size(), 0);
  return got > 0 ? std::string(buffer.data(), static_cast<std::size_t>(got)) : std::string();
}

bool is_full(int error) { return error == ENOSPC || error == EDQUOT; }

// The last part of a temporary's path is "<host>-<pid>-<random>", which is who we are.
std::string holder_name(const ChunkPaths& paths) {
  std::string name = std::filesystem::path(paths.unique_temporary()).filename();
  std::replace(name.begin(), name.end(), '-', ' ');
  return name;
}

// Empty as it mostly is, somebody may have removed it, or the whole namespace.
void make_temporary_directory(const ChunkPaths& paths, Access access) {
  std::vector<std::string> directories = paths.directories_for(ChunkKey{});
  directories.pop_back();  // of the key's own
  for (const std::string& directory : directories) {
    [[maybe_unused]] const int result = make_directory(directory, access);  // mostly it is there
  }
}

}  // namespace

EvictorLease::EvictorLease(const ChunkPaths& paths, Clock::duration expiry, Access access)
    : paths_(paths),
      path_(paths.root() + "/v1/evictor.lease"),
      taker_path_(path_ + ".taken"),
      expiry_(expiry),
      access_(access),
      holder_(holder_name(paths)) {}

EvictorLease::Answer EvictorLease::try_acquire() {
  if (held_) return renew() ? Answer::kHeld : Answer::kBusy;
  if (create()) return Answer::kHeld;
  if (is_full(errno)) return hold_without_file();
  if (errno != EEXIST) return Answer::kFailed;
  const std::optional<Seen> there = look(path_);
  if (!there || !is_dead(*there, holder_watched_)) return Answer::kBusy;
  take_away(*there);
  return create() ? Answer::kHeld : Answer::kBusy;
}

bool EvictorLease::create() {
  const UniqueFd created = create_file(path_, access_);
  if (created.get() < 0) return false;
  held_ = write(created.get());
  if (!held_) {
    const int error = errno;
    ::unlink(path_.c_str());
    errno = error;
  }
  return held_;
}

EvictorLease::Answer EvictorLease::hold_without_file() {
  held_ = true;
  has_file_ = false;
  renewed_ns_ = lmkv::filesystem_now_ns(paths_);
  renewed_at_ = Clock::now();
  return Answer::kHeld;
}

bool EvictorLease::is_dead(const Seen& now, Watched& watched) const {
  if (watched.seen != now) watched = {now, Clock::now()};
  return Clock::now() - watched.since >= expiry_;
}

std::optional<EvictorLease::Seen> EvictorLease::look(const std::string& path) {
  Seen seen;
  struct statx status{};
  // Opened where we may, for its text. What the client of a network filesystem remembers of a file
  // that it may not open can be older than the whole expiry: the server is asked.
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | kFlags));
  if (file.get() >= 0) seen.text = text_of(file.get());
  if (!stat_afresh(AT_FDCWD, path.c_str(), status)) return std::nullopt;
  seen.inode = status.stx_ino;
  seen.modified_ns = nanoseconds(status.stx_mtime);
  return seen;
}

// Of several who find the same holder dead one may take its file away, so that none of them takes
// the file of the one that was faster.
void EvictorLease::take_away(const Seen& dead) {
  const UniqueFd taker = create_file(taker_path_, access_);
  if (taker.get() < 0) {
    const std::optional<Seen> other = look(taker_path_);
    if (other && is_dead(*other, taker_watched_)) ::unlink(taker_path_.c_str());
    return;
  }
  const std::string aside = paths_.unique_temporary();
  make_temporary_directory(paths_, access_);
  if (look(path_) == dead && ::rename(path_.c_str(), aside.c_str()) == 0) {
    // A holder that was only stuck may have given it back, and another taken it, in between.
    if (look(aside) != dead) {
      [[maybe_unused]] const int put_back = ::link(aside.c_str(), path_.c_str());
    }
    ::unlink(aside.c_str());
  }
  ::unlink(taker_path_.c_str());
}

bool EvictorLease::write(int descriptor) {
  const std::string text = holder_ + " " + std::to_string(++beat_) + "\n";
  struct stat status{};
  const bool written =
      ::pwrite(descriptor, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
      ::fsync(descriptor) == 0;
  // Where the disk is full, which is when it is needed, it is held without saying whose it is.
  if (!written && !is_full(errno)) return false;
  if ((!written && ::futimens(descriptor, nullptr) != 0) || ::fstat(descriptor, &status) != 0) {
    return false;
  }
  has_file_ = true;
  inode_ = status.st_ino;
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
  struct stat status{};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) return UniqueFd();
  const std::string text = text_of(file.get());
  const bool ours = text.empty() ? status.st_ino == inode_ : text.starts_with(holder_ + " ");
  return ours ? std::move(file) : UniqueFd();
}

bool EvictorLease::renew() {
  if (!held_) return false;
  if (Clock::now() - renewed_at_ < expiry_ / 4) return true;
  if (!has_file_) {  // there may be room for one by now
    if (create()) return true;
    if (is_full(errno)) return hold_without_file() == Answer::kHeld;
    return held_ = false;
  }
  const UniqueFd file = open_own();
  held_ = file.get() >= 0 && write(file.get());
  return held_;
}

void EvictorLease::release() {
  if (!held_) return;
  held_ = false;
  if (!has_file_) return;
  if (open_own().get() >= 0) ::unlink(path_.c_str());
}

}  // namespace lmkv
