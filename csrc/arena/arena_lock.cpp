#include "arena/arena_lock.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/random.h>

#include <cerrno>
#include <chrono>
#include <exception>
#include <thread>

#include "arena/arena_file.hpp"

namespace lmkv {
namespace {

using Clock = std::chrono::steady_clock;

// Behind any file's end, where locks may be as well.
constexpr off_t kFirstByte = off_t{1} << 60;

constexpr std::uint16_t kFirstSeat = kArenaMembers;
constexpr std::uint16_t kSeats = 4096;

// It is held for microseconds: no use to sleep before so many tries, or to ask so soon whether the
// holder is alive.
constexpr int kBusyTries = 64;
constexpr auto kPause = std::chrono::microseconds(20);
constexpr auto kImpatience = std::chrono::milliseconds(50);
constexpr auto kAskAfter = std::chrono::microseconds(50);

struct flock lock_on(std::uint16_t byte) {
  struct flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kFirstByte + byte;
  lock.l_len = 1;
  return lock;
}

std::uint16_t byte_of(std::uint64_t ticket) { return static_cast<std::uint16_t>(ticket); }

bool is_dead(const ArenaFile& file, std::uint64_t holder) {
  if (holder == file.seat().ticket) return false;  // another thread of ours, or a child
  // Ours by the byte, but not ours: of one that had the seat before.
  if (byte_of(holder) == file.seat().byte) return true;
  return !is_locked_elsewhere(file.fd(), byte_of(holder));
}

}  // namespace

bool try_lock_byte(int fd, std::uint16_t byte) {
  struct flock lock = lock_on(byte);
  return ::fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

bool is_locked_elsewhere(int fd, std::uint16_t byte) {
  struct flock lock = lock_on(byte);
  return ::fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

std::optional<ArenaSeat> take_arena_seat(int fd) {
  std::uint64_t random = 0;
  if (::getrandom(&random, sizeof random, 0) != sizeof random) return std::nullopt;
  for (std::uint32_t i = 0; i < kSeats; ++i) {
    const auto byte = static_cast<std::uint16_t>(kFirstSeat + (random + i) % kSeats);
    if (try_lock_byte(fd, byte)) return ArenaSeat{byte, (random << 16) | byte};
  }
  return std::nullopt;
}

std::optional<ArenaLock> ImpatientLock::take(const ArenaFile& file) {
  const bool waits = Clock::now() >= impatient_until_;
  std::optional<ArenaLock> held =
      ArenaLock::take(file, waits ? patience_ : Clock::duration::zero());
  if (held) {
    impatient_until_ = {};
  } else if (waits) {
    impatient_until_ = Clock::now() + kImpatience;
  }
  return held;
}

std::optional<ArenaLock> ArenaLock::take(const ArenaFile& file, Duration patience) {
  ArenaSlots<> slots = file.slots();
  Shared64& word = slots.control().lock;
  const std::uint64_t mine = file.seat().ticket;
  std::uint64_t holder = 0;
  if (word.compare_exchange_strong(holder, mine, std::memory_order_acquire)) {
    return ArenaLock(&word);
  }
  const Clock::time_point begun = Clock::now();
  for (int tries = 0;; ++tries) {
    const Clock::duration waited = Clock::now() - begun;
    const bool is_last = waited >= patience;
    const bool asks = holder != 0 && (is_last || waited >= kAskAfter);
    // Of the dead holder that was looked at, or of nobody: if another was quicker, again.
    std::uint64_t expected = asks && is_dead(file, holder) ? holder : 0;
    if (!word.compare_exchange_strong(expected, mine, std::memory_order_acquire)) {
      if (is_last) return std::nullopt;
      holder = expected;
      if (tries < kBusyTries) {
        ::sched_yield();
      } else {
        std::this_thread::sleep_for(kPause);
      }
      continue;
    }
    ArenaLock held(&word);
    if (expected == 0) return held;
    try {
      slots.repair();
    } catch (const std::exception&) {  // no memory: the next one repairs
      held.word_ = nullptr;
      word.store(expected, std::memory_order_release);
      return std::nullopt;
    }
    return held;
  }
}

}  // namespace lmkv
