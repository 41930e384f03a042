// The lock of an arena, which a process that dies with it does not keep.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

#include "arena/arena_slots.hpp"

namespace lmkv {

class ArenaFile;

// Who wants the lock: an open arena file has a lock on a byte of it (F_OFD_SETLK, fcntl(2)) that no
// other open file has, for as long as it is open. The kernel takes that away when the last process
// that has it open is gone, however it went; and it says so to processes in other PID namespaces
// (containers that share /dev/shm), where a pid or a thread's number, by which a robust mutex goes,
// may be two processes'.
struct ArenaSeat {
  std::uint16_t byte = 0;  // which
  std::uint64_t ticket =
      0;  // what the lock's word is while it is held: the byte, and a random part
};

// Held while it lives. One thread of those that share an ArenaFile at a time. Nobody does anything
// slow with it, but a holder may be stopped (a debugger, a frozen cgroup): nobody waits longer than
// `patience`, and what an arena is asked for then is not there. From a holder that is dead it is
// taken by whoever notices, who then repairs what is derived.
class ArenaLock {
 public:
  using Duration = std::chrono::steady_clock::duration;
  static constexpr Duration kPatience = std::chrono::milliseconds(2);

  [[nodiscard]] static std::optional<ArenaLock> take(const ArenaFile& file,
                                                     Duration patience = kPatience);
  ArenaLock(ArenaLock&& other) noexcept : word_(std::exchange(other.word_, nullptr)) {}
  ArenaLock& operator=(ArenaLock&&) = delete;
  ArenaLock(const ArenaLock&) = delete;
  ArenaLock& operator=(const ArenaLock&) = delete;
  ~ArenaLock() {
    if (word_ != nullptr) word_->store(0, std::memory_order_release);
  }

 private:
  explicit ArenaLock(Shared64* word) : word_(word) {}
  Shared64* word_;
};

// Whoever found the lock held for as long as that does not wait for it again for a while: a prompt
// has hundreds of chunks. One thread at a time.
class ImpatientLock {
 public:
  explicit ImpatientLock(ArenaLock::Duration patience = ArenaLock::kPatience)
      : patience_(patience) {}
  [[nodiscard]] std::optional<ArenaLock> take(const ArenaFile& file);

 private:
  const ArenaLock::Duration patience_;
  std::chrono::steady_clock::time_point impatient_until_{};
};

// A seat for an open file that has none; empty when all are taken.
[[nodiscard]] std::optional<ArenaSeat> take_arena_seat(int fd);

// Bytes of the file, behind its end, that locks are on: members' first, then seats.
[[nodiscard]] bool try_lock_byte(int fd, std::uint16_t byte);
// Whether another open file has a lock on it. What cannot be asked is taken to be.
[[nodiscard]] bool is_locked_elsewhere(int fd, std::uint16_t byte);

}  // namespace lmkv
