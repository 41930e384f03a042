// Wakes a thread without a lock.
#pragma once

#include <semaphore.h>

#include <cerrno>
#include <chrono>
#include <ctime>

namespace lmkv {

// One thread waits, any may ring; what rang before a wait ends that wait. A condition variable
// would need a mutex, and a thread that hardly ever runs may not hold one that others want.
class Doorbell {
 public:
  Doorbell() { ::sem_init(&semaphore_, 0, 0); }
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;
  ~Doorbell() { ::sem_destroy(&semaphore_); }

  void ring() { ::sem_post(&semaphore_); }

  void wait() {
    while (::sem_wait(&semaphore_) != 0 && errno == EINTR) {
    }
    forget();
  }

  void wait_until(std::chrono::steady_clock::time_point when) {
    using std::chrono::nanoseconds;
    const auto since_boot = std::chrono::duration_cast<nanoseconds>(when.time_since_epoch());
    constexpr nanoseconds::rep kPerSecond = 1'000'000'000;
    timespec until{};
    until.tv_sec = since_boot.count() / kPerSecond;
    until.tv_nsec = since_boot.count() % kPerSecond;
    while (::sem_clockwait(&semaphore_, CLOCK_MONOTONIC, &until) != 0 && errno == EINTR) {
    }
    forget();
  }

 private:
  // Many rings are one.
  void forget() {
    while (::sem_trywait(&semaphore_) == 0) {
    }
  }

  sem_t semaphore_{};
};

}  // namespace lmkv
