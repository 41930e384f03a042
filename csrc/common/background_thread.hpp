// What every thread of lmkv's does first.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

namespace lmkv {

// Names the calling thread and lets it run wherever the parent process may. A thread inherits the
// processors of the one that makes it, and that may be pinned to the core that it computes on (vLLM
// pins its CPU workers so): ours would take turns with it there, whatever else is idle. What the
// user gave the engine as a whole, by taskset or a cpuset, the parent has as well.
inline void become_background_thread(const char* name) {
  ::pthread_setname_np(::pthread_self(), name);
  cpu_set_t own;
  cpu_set_t parents;
  CPU_ZERO(&own);
  CPU_ZERO(&parents);
  if (::sched_getaffinity(0, sizeof own, &own) != 0) return;
  if (::sched_getaffinity(::getppid(), sizeof parents, &parents) != 0) return;
  CPU_OR(&own, &own, &parents);
  // If that fails the thread stays where it is: slower, not wrong.
  [[maybe_unused]] const int result = ::sched_setaffinity(0, sizeof own, &own);
}

// The calling thread runs where nothing else wants to: sched(7), SCHED_IDLE. If that fails it takes
// its share as before.
inline void run_only_when_idle() {
  const sched_param none{};
  [[maybe_unused]] const int result = ::sched_setscheduler(0, SCHED_IDLE, &none);
}

}  // namespace lmkv
