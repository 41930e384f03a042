// Which engines use an arena, and which of them are dead.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "arena/arena_file.hpp"

namespace lmkv {

// Seconds of CLOCK_MONOTONIC.
[[nodiscard]] std::uint64_t arena_now();

// A member's place in an arena, until it goes. It is alive for as long as it has a lock on its byte
// of the file (F_OFD_SETLK, fcntl(2)): the kernel takes the lock away when the last process that
// has the file open by this description is gone, however it went, and tells members in other PID
// namespaces (containers that share /dev/shm), where a pid says nothing. A child that was forked
// and did not exec keeps its parent's place taken: memory is then kept too long, never lost too
// early.
class JoinedArena {
 public:
  // The arena that is there, or a new one of about `bytes`. Throws ArenaError, also when all places
  // are taken.
  JoinedArena(const ArenaPlace& place, std::uint64_t bytes);
  JoinedArena(const JoinedArena&) = delete;
  JoinedArena& operator=(const JoinedArena&) = delete;
  // What it still fills becomes an orphan, as after a death.
  ~JoinedArena();

  [[nodiscard]] const ArenaFile& file() const { return file_; }
  [[nodiscard]] std::uint8_t number() const { return number_; }

 private:
  struct Place {
    ArenaFile file;
    std::uint8_t number;
  };
  explicit JoinedArena(Place place);
  static Place take_place(const ArenaPlace& place, std::uint64_t bytes);

  ArenaFile file_;
  std::uint8_t number_;
  pid_t pid_;  // of the process that joined
};

// Whether another has this member's place.
[[nodiscard]] bool is_alive_elsewhere(const ArenaFile& file, std::uint8_t member);

// With the arena's lock: what members had that died. `self`: whoever asks, if it is one.
void bury_dead(const ArenaFile& file, std::optional<std::uint8_t> self, std::uint64_t now);

}  // namespace lmkv
