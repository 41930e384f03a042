#include "store/lease.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "common/enter.hpp"
#include "common/posix.hpp"
#include "store/file_times.hpp"

namespace lmkv {
namespace {

constexpr char kName[] = "evictor.lease";
constexpr char kTaker[] = "evictor.lease.taken";  // made first by whoever takes a dead one away
constexpr int kFlags = O_NOFOLLOW | O_CLOEXEC;
constexpr std::size_t kTextBytes = 512;  // longer than a host's name and three numbers

std::string text_of(int descriptor) {
  std::array<char, kTextBytes> buffer{};
  const ssize_t got = ::pread(descriptor, buffer.data(), buffer.size(), 0);
  return got > 0 ? std::string(buffer.data(), static_cast<std::size_t>(got)) : std::string();
}

bool is_full(int error) { return error == ENOSPC || error == EDQUOT; }

// A file, a link or whatever else lies there; of directories only an empty one.
void remove(int directory, const char* name) {
  if (::unlinkat(directory, name, 0) != 0 && errno == EISDIR) {
    ::unlinkat(directory, name, AT_REMOVEDIR);
  }
}

// The last part of a temporary's path is "<host>-<pid>-<random>", which is who we are.
std::string holder_name(const ChunkPaths& paths) {
  std::string name = std::filesystem::path(paths.unique_temporary()).filename();
  std::replace(name.begin(), name.end(), '-', ' ');
  return name;
}

}  // namespace

EvictorLease::EvictorLease(const ChunkPaths& paths, Clock::duration expiry, Access access)
    : paths_(paths),
      path_(paths.root() + "/v1/" + kName),
      expiry_(expiry),
      access_(access),
      holder_(holder_name(paths)) {}

EvictorLease::Answer EvictorLease::try_acquire() {
  if (held_) return renew() ? Answer::kHeld : Answer::kBusy;
  const UniqueFd tree = enter_tree();
  if (tree.get() < 0) return Answer::kFailed;
  if (create(tree.get())) return Answer::kHeld;
  if (is_full(errno)) return hold_without_file();
  if (errno != EEXIST) return Answer::kFailed;
  const std::optional<Seen> there = look(tree.get(), kName);
  if (!there || !is_dead(*there, holder_watched_)) return Answer::kBusy;
  if (there->is_directory && ::unlinkat(tree.get(), kName, AT_REMOVEDIR) != 0) {
    return Answer::kFailed;  // with something in it, which is not ours
  }
  take_away(tree.get(), *there);
  return create(tree.get()) ? Answer::kHeld : Answer::kBusy;
}

UniqueFd EvictorLease::enter_tree() const { return enter(paths_.root(), paths_.root() + "/v1"); }

bool EvictorLease::create(int tree) {
  const UniqueFd created = create_file(tree, kName, access_);
  if (created.get() < 0) return false;
  held_ = write(created.get());
  if (!held_) {
    const int error = errno;
    ::unlinkat(tree, kName, 0);
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

std::optional<EvictorLease::Seen> EvictorLease::look(int directory, const char* name) {
  Seen seen;
  struct statx status{};
  // What the client of a network filesystem remembers of a file that it may not open can be older
  // than the whole expiry: the server is asked.
  if (!stat_afresh(directory, name, status)) return std::nullopt;
  if (S_ISREG(status.stx_mode)) {  // to open a device may do something
    const UniqueFd file(::openat(directory, name, O_RDONLY | O_NONBLOCK | kFlags));
    if (file.get() >= 0) seen.text = text_of(file.get());
    if (!stat_afresh(directory, name, status)) return std::nullopt;
  }
  seen.inode = status.stx_ino;
  seen.modified_ns = nanoseconds(status.stx_mtime);
  seen.is_directory = S_ISDIR(status.stx_mode);
  return seen;
}

// Of several who find the same holder dead one may take its file away, so that none of them takes
// the file of the one that was faster.
void EvictorLease::take_away(int tree, const Seen& dead) {
  const UniqueFd taker = create_file(tree, kTaker, access_);
  if (taker.get() < 0) {
    const std::optional<Seen> other = look(tree, kTaker);
    if (other && is_dead(*other, taker_watched_)) remove(tree, kTaker);
    return;
  }
  const std::string name = std::filesystem::path(paths_.unique_temporary()).filename();
  const char* const aside = name.c_str();
  // Empty as it mostly is, somebody may have removed it, or the whole namespace.
  make_directories(paths_, access_);
  const UniqueFd there = enter(paths_.root(), paths_.temporary_directory());
  const int place = there.get();
  if (place >= 0 && look(tree, kName) == dead && ::renameat(tree, kName, place, aside) == 0) {
    // A holder that was only stuck may have given it back, and another taken it, in between.
    if (look(place, aside) != dead) {
      [[maybe_unused]] const int put_back = ::linkat(place, aside, tree, kName, 0);
    }
    ::unlinkat(place, aside, 0);
  }
  ::unlinkat(tree, kTaker, 0);
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

UniqueFd EvictorLease::open_own(int tree) {
  UniqueFd file(::openat(tree, kName, O_RDWR | O_NONBLOCK | kFlags));
  struct stat status{};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) return UniqueFd();
  const std::string text = text_of(file.get());
  const bool ours = text.empty() ? status.st_ino == inode_ : text.starts_with(holder_ + " ");
  return ours ? std::move(file) : UniqueFd();
}

bool EvictorLease::renew() {
  if (!held_) return false;
  if (Clock::now() - renewed_at_ < expiry_ / 4) return true;
  const UniqueFd tree = enter_tree();
  if (!has_file_) {  // there may be room for one by now
    if (create(tree.get())) return true;
    if (is_full(errno)) return hold_without_file() == Answer::kHeld;
    return held_ = false;
  }
  const UniqueFd file = open_own(tree.get());
  held_ = file.get() >= 0 && write(file.get());
  return held_;
}

void EvictorLease::release() {
  if (!held_) return;
  held_ = false;
  if (!has_file_) return;
  const UniqueFd tree = enter_tree();
  if (open_own(tree.get()).get() >= 0) ::unlinkat(tree.get(), kName, 0);
}

}  // namespace lmkv
