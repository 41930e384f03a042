// The lock of an arena, which a process that dies with it does not keep.
#pragma once

#include <pthread.h>

#include <chrono>
#include <optional>
#include <utility>

#include "arena/arena_slots.hpp"

namespace lmkv {

// Makes the mutex of a new arena. Throws std::system_error.
void init_arena_mutex(pthread_mutex_t& mutex);

// Held while it lives. It is a robust mutex (pthread_mutexattr_setrobust(3)): if its holder dies
// the kernel marks it, and whoever takes it next repairs what is derived. Nobody does anything slow
// with it, but a holder may be stopped (a debugger, a frozen cgroup): nobody waits longer than
// `patience`, and what an arena is asked for then is not there.
class ArenaLock {
 public:
  using Duration = std::chrono::steady_clock::duration;
  static constexpr Duration kPatience = std::chrono::milliseconds(2);

  [[nodiscard]] static std::optional<ArenaLock> take(ArenaSlots<>& slots,
                                                     Duration patience = kPatience);
  ArenaLock(ArenaLock&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
  ArenaLock& operator=(ArenaLock&&) = delete;
  ArenaLock(const ArenaLock&) = delete;
  ArenaLock& operator=(const ArenaLock&) = delete;
  ~ArenaLock();

 private:
  explicit ArenaLock(pthread_mutex_t* mutex) : mutex_(mutex) {}
  pthread_mutex_t* mutex_;
};

}  // namespace lmkv
