#include "arena/arena_lock.hpp"

#include <sched.h>

#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>

namespace lmkv {
namespace {

using Clock = std::chrono::steady_clock;

// It is held for about as long as this many tries take: no use to sleep before.
constexpr int kBusyTries = 64;
constexpr auto kPause = std::chrono::microseconds(20);

void check(int error, const char* what) {
  if (error != 0) throw std::system_error(error, std::generic_category(), what);
}

// Tries, rather than pthread_mutex_timedlock(3): that goes by the clock that people set.
int lock(pthread_mutex_t* mutex, ArenaLock::Duration patience) {
  int error = ::pthread_mutex_trylock(mutex);
  if (error != EBUSY || patience <= ArenaLock::Duration::zero()) return error;
  const Clock::time_point until = Clock::now() + patience;
  for (int tries = 0; error == EBUSY && Clock::now() < until; ++tries) {
    if (tries < kBusyTries) {
      ::sched_yield();
    } else {
      std::this_thread::sleep_for(kPause);
    }
    error = ::pthread_mutex_trylock(mutex);
  }
  return error;
}

}  // namespace

void init_arena_mutex(pthread_mutex_t& mutex) {
  pthread_mutexattr_t attributes;
  check(::pthread_mutexattr_init(&attributes), "pthread_mutexattr_init");
  ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  const int error = ::pthread_mutex_init(&mutex, &attributes);
  ::pthread_mutexattr_destroy(&attributes);
  check(error, "pthread_mutex_init");
}

std::optional<ArenaLock> ArenaLock::take(ArenaSlots<>& slots, Duration patience) {
  pthread_mutex_t* const mutex = &slots.control().mutex;
  const int error = lock(mutex, patience);
  if (error != 0 && error != EOWNERDEAD) return std::nullopt;
  ArenaLock held(mutex);
  if (error == EOWNERDEAD) {
    slots.repair();
    // Only now: if this process dies before, the next one repairs.
    ::pthread_mutex_consistent(mutex);
  }
  return held;
}

ArenaLock::~ArenaLock() {
  if (mutex_ != nullptr) ::pthread_mutex_unlock(mutex_);
}

}  // namespace lmkv
