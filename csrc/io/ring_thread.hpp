// An I/O thread with a ring that nobody else touches.
#pragma once

#include <liburing.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/unique_fd.hpp"
#include "io/io_engine.hpp"
#include "io/ring_setup.hpp"
#include "io/ring_slabs.hpp"

namespace lmkv {

class RingThread {
 public:
  // Returns once the ring is open; throws std::runtime_error with the kernel's reason otherwise.
  RingThread();
  RingThread(const RingThread&) = delete;
  RingThread& operator=(const RingThread&) = delete;
  ~RingThread() { stop(); }

  // Ends the thread when all that was submitted is done. Idempotent.
  void stop();

  void submit(Operation& operation);
  // Waits for the thread. Returns 0 or -errno.
  int register_memory(const SlabMemory& memory);

  [[nodiscard]] const std::string& setup() const { return setup_; }
  [[nodiscard]] std::string slabs_in_words() const { return slabs_.in_words(); }

  // The ring that the calling thread drives, if it is an I/O thread.
  static RingThread* current();

 private:
  struct Registration {
    SlabMemory memory;
    std::promise<int> result;
  };

  void run(std::promise<int>& opened);
  void wake() const;
  bool idle();
  void step();
  void take_inbox();
  void fill_queue();
  unsigned reap();
  void arm_wake();

  UniqueFd wake_descriptor_;
  std::string setup_;  // constant once the constructor is done
  std::atomic<bool> stopping_{false};
  std::mutex inbox_mutex_;
  std::vector<Operation*> inbox_;         // guarded by inbox_mutex_, as the next
  Registration* registration_ = nullptr;  // on the stack of who waits for it

  // Ring thread only.
  io_uring ring_{};
  RingSlabs slabs_;
  std::deque<Operation*> local_;
  std::size_t in_kernel_ = 0;
  std::uint64_t wake_count_ = 0;
  bool wake_armed_ = false;

  std::thread thread_;
};

}  // namespace lmkv
