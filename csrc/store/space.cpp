#include "store/space.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "common/unique_fd.hpp"

namespace lmkv {
namespace {

// Of the capacity: where eviction starts, and where it ends.
constexpr std::uint64_t start_of(std::uint64_t capacity) { return capacity - capacity / 40; }
constexpr std::uint64_t end_of(std::uint64_t capacity) { return capacity - capacity / 20; }
// Of the floor: the same.
constexpr std::uint64_t floor_start_of(std::uint64_t floor) { return floor + floor / 20; }
constexpr std::uint64_t floor_end_of(std::uint64_t floor) { return floor + floor / 10; }

// A disk that is full without our limits saying so (a quota, or others' files): room for some
// stores, but not so little that the next one meets the same.
constexpr std::uint64_t kStoresToMakeRoomFor = 16;

constexpr std::chrono::seconds kFirstFullDiskPause{1};
constexpr std::chrono::minutes kLongestFullDiskPause{5};
constexpr int kFullDiskPasses = 3;

constexpr std::chrono::minutes kFirstFloorPause{1};
constexpr std::chrono::minutes kLongestFloorPause{10};

std::uint64_t less(std::uint64_t a, std::uint64_t b) { return a > b ? a - b : 0; }

std::uint64_t plus(std::uint64_t a, std::int64_t b) {
  return b < 0 ? less(a, static_cast<std::uint64_t>(-b)) : a + static_cast<std::uint64_t>(b);
}

}  // namespace

std::optional<FilesystemSpace> filesystem_space(const std::string& root, const MountPlace& place) {
  const UniqueFd directory(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct statx identity{};
  struct statvfs found{};
  if (directory.get() < 0 ||
      ::statx(directory.get(), "", AT_EMPTY_PATH, STATX_TYPE, &identity) != 0 ||
      ::fstatvfs(directory.get(), &found) != 0) {
    return std::nullopt;
  }
  if (place.has_vanished({identity.stx_dev_major, identity.stx_dev_minor})) {
    errno = ENODEV;
    return std::nullopt;
  }
  // Blocks that only root may use count as neither.
  const std::uint64_t used = found.f_blocks - found.f_bfree;
  // Some filesystems do not count their files, and say 0 of all.
  const std::uint64_t names =
      found.f_files == 0 ? std::numeric_limits<std::uint64_t>::max() : found.f_favail;
  return FilesystemSpace{(used + found.f_bavail) * found.f_frsize, found.f_bavail * found.f_frsize,
                         names};
}

std::string_view in_words(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone: return "there is room";
    case Refusal::kNotCounted: return "what is there is still being counted";
    case Refusal::kCapacity: return "the directory holds as much as it may";
    case Refusal::kFloor: return "the disk has no more free than is to stay free";
  }
  return "unknown";
}

SpaceLedger::SpaceLedger(const SpaceLimits& limits, std::function<void()> attention)
    : limits_(limits), attention_(std::move(attention)) {}

std::uint64_t SpaceLedger::known() const { return plus(scanned_bytes_, own_bytes_); }

std::uint64_t SpaceLedger::estimate() const {
  const std::uint64_t ours = known() + reserved_;
  if (!filesystem_ || !free_at_scan_) return ours;
  const std::int64_t shrunk =
      static_cast<std::int64_t>(*free_at_scan_) - static_cast<std::int64_t>(filesystem_->free);
  return std::max(ours, plus(scanned_bytes_, shrunk));
}

std::uint64_t SpaceLedger::free_estimate() const { return less(filesystem_->free, reserved_); }

std::uint64_t SpaceLedger::floor_bytes() const {
  if (!filesystem_) return 0;
  return static_cast<std::uint64_t>(static_cast<double>(filesystem_->total) *
                                    limits_.free_space_floor);
}

Refusal SpaceLedger::refusal_of(std::size_t bytes) const {
  if (limits_.capacity != 0) {
    if (!scanned_) return Refusal::kNotCounted;
    if (estimate() + bytes > limits_.capacity) return Refusal::kCapacity;
  }
  const std::uint64_t floor = floor_bytes();
  return floor == 0 || free_estimate() >= floor + bytes ? Refusal::kNone : Refusal::kFloor;
}

bool SpaceLedger::admits(std::size_t bytes) {
  const Refusal refusal = refusal_of(bytes);
  if (refusal == Refusal::kNone) return true;
  last_refusal_ = refusal;
  refused_bytes_ = std::max(refused_bytes_, bytes);
  return false;
}

bool SpaceLedger::near_limit() const {
  if (limits_.capacity != 0 && estimate() > limits_.capacity - limits_.capacity / 8) return true;
  const std::uint64_t floor = floor_bytes();
  return floor != 0 && free_estimate() < floor + floor / 4;
}

std::uint64_t SpaceLedger::left() const {
  std::uint64_t left = std::numeric_limits<std::uint64_t>::max();
  if (limits_.capacity != 0) left = less(limits_.capacity, estimate());
  if (const std::uint64_t floor = floor_bytes(); floor != 0) {
    left = std::min(left, less(free_estimate(), floor));
  }
  return left;
}

bool SpaceLedger::has_room(std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (admits(bytes)) return true;
  }
  attention_();
  return false;
}

bool SpaceLedger::try_reserve(std::size_t bytes) {
  bool admitted = false;
  bool look = true;
  {
    const std::lock_guard lock(mutex_);
    if (admits(bytes) &&
        (unseen_ == 0 || unseen_ + bytes <= std::max(limits_.unseen, left() / 4))) {
      reserved_ += bytes;
      unseen_ += bytes;
      admitted = true;
      look = near_limit() || unseen_ > left() / 8;
    }
  }
  if (look) attention_();
  return admitted;
}

void SpaceLedger::settle(std::size_t bytes, bool written) {
  {
    const std::lock_guard lock(mutex_);
    reserved_ -= bytes;
    if (!written) return;
    own_bytes_ += static_cast<std::int64_t>(bytes);
    own_bytes_of_scan_ += static_cast<std::int64_t>(bytes);
    full_disk_written_ += bytes;
    full_disk_passes_ = 0;
    taken_ += bytes;
    pass_written_ += bytes;
    if (filesystem_) filesystem_->free = less(filesystem_->free, bytes);
    if (!near_limit()) return;
  }
  attention_();
}

void SpaceLedger::met_full_disk(std::size_t bytes, bool quota, Clock::time_point now) {
  {
    const std::lock_guard lock(mutex_);
    if (now < full_disk_again_ || full_disk_passes_ >= kFullDiskPasses) return;
    if (full_disk_bytes_ == 0) {
      const bool helped = full_disk_written_ >= full_disk_evicted_ / 2;
      full_disk_pause_ =
          helped ? Clock::duration(kFirstFullDiskPause)
                 : std::min<Clock::duration>(2 * full_disk_pause_, kLongestFullDiskPause);
      full_disk_evicted_ = 0;
    }
    full_disk_bytes_ = std::max(full_disk_bytes_, bytes);
    full_disk_is_quota_ = full_disk_is_quota_ || quota;
  }
  attention_();
}

void SpaceLedger::saw_filesystem(const FilesystemSpace& space) {
  const std::lock_guard lock(mutex_);
  filesystem_ = space;
  unseen_ = 0;
  if (space.free >= floor_start_of(floor_bytes())) {
    floor_pause_ = {};
    floor_again_ = {};
  }
}

void SpaceLedger::begin_scan() {
  const std::lock_guard lock(mutex_);
  own_bytes_of_scan_ = 0;
  free_at_scan_begin_ = filesystem_ ? std::optional(filesystem_->free) : std::nullopt;
}

void SpaceLedger::end_scan(std::uint64_t used, bool complete) {
  const std::lock_guard lock(mutex_);
  if (!complete) {
    // What it could not see may still be there. What we stored meanwhile is not in scanned_bytes_.
    used = std::max(
        less(used, static_cast<std::uint64_t>(std::max<std::int64_t>(own_bytes_of_scan_, 0))),
        plus(known(), -own_bytes_of_scan_));
  }
  scanned_bytes_ = used;
  scanned_ = true;
  own_bytes_ = own_bytes_of_scan_;
  free_at_scan_ = free_at_scan_begin_;
}

void SpaceLedger::evicted(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  own_bytes_ -= static_cast<std::int64_t>(bytes);
  own_bytes_of_scan_ -= static_cast<std::int64_t>(bytes);
  taken_ = less(taken_, bytes);
  if (full_disk_bytes_ != 0) full_disk_evicted_ += bytes;
  // Some filesystems give the space back a moment later.
  if (filesystem_) filesystem_->free += bytes;
}

std::uint64_t SpaceLedger::excess_over_capacity(std::uint64_t used) const {
  if (limits_.capacity == 0 || !scanned_) return 0;
  const bool refused = refused_bytes_ != 0 && used + refused_bytes_ > limits_.capacity;
  if (used <= start_of(limits_.capacity) && !refused) return 0;
  const std::uint64_t goal =
      std::min(end_of(limits_.capacity), less(limits_.capacity, refused_bytes_));
  return less(used, goal);
}

std::uint64_t SpaceLedger::excess_over_floor(Clock::time_point now) const {
  const std::uint64_t floor = floor_bytes();
  if (floor == 0 || now < floor_again_) return 0;
  const std::uint64_t free = free_estimate();
  const bool refused = refused_bytes_ != 0 && free < floor + refused_bytes_;
  if (free >= floor_start_of(floor) && !refused) return 0;
  return std::min(taken_, less(std::max(floor_end_of(floor), floor + refused_bytes_), free));
}

std::uint64_t SpaceLedger::excess_for_full_disk() const {
  return kStoresToMakeRoomFor * full_disk_bytes_;
}

bool SpaceLedger::may_have_excess(Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  return excess_over_capacity(estimate()) > 0 || excess_over_floor(now) > 0 ||
         excess_for_full_disk() > 0;
}

void SpaceLedger::begin_pass() {
  const std::lock_guard lock(mutex_);
  pass_written_ = 0;
  if (!filesystem_) return;
  pass_free_ = filesystem_->free;
  if (!full_disk_is_quota_ && free_estimate() >= excess_for_full_disk() &&
      filesystem_->names_free >= kStoresToMakeRoomFor) {
    full_disk_bytes_ = 0;
  }
}

Excess SpaceLedger::excess(Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  Excess most;
  for (const Excess one :
       {Excess{excess_over_capacity(known() + reserved_), EvictionReason::kCapacity},
        Excess{excess_over_floor(now), EvictionReason::kFloor},
        Excess{excess_for_full_disk(), EvictionReason::kFullDisk}}) {
    if (one.bytes > most.bytes) most = one;
  }
  return most;
}

void SpaceLedger::made_room(EvictionReason reason, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  refused_bytes_ = 0;
  if (reason == EvictionReason::kFloor && filesystem_ &&
      filesystem_->free + pass_written_ <= pass_free_) {
    floor_pause_ =
        std::clamp<Clock::duration>(2 * floor_pause_, kFirstFloorPause, kLongestFloorPause);
    floor_again_ = now + floor_pause_;
  }
  if (full_disk_bytes_ == 0) return;
  full_disk_bytes_ = 0;
  full_disk_is_quota_ = false;
  // What found nothing to evict (all of it was used a moment ago, say) has done no harm to stop
  // for.
  if (full_disk_evicted_ > 0) ++full_disk_passes_;
  full_disk_again_ = now + full_disk_pause_;
  full_disk_written_ = 0;
}

std::uint64_t SpaceLedger::used() const {
  const std::lock_guard lock(mutex_);
  return known();
}

bool SpaceLedger::is_full() const {
  const std::lock_guard lock(mutex_);
  return refusal_of(refused_bytes_) != Refusal::kNone;
}

Refusal SpaceLedger::last_refusal() const {
  const std::lock_guard lock(mutex_);
  return last_refusal_;
}

}  // namespace lmkv
