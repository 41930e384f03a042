// A stream of work in host memory that behaves as a GPU's does: what is queued runs later, in
// order, on a thread of its own. An engine on the CPU has none (its forward pass is over when it
// submits); with one, what is ordered after what is proven on machines without a GPU.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "device/device.hpp"

namespace lmkv {

// A point in a HostStream's work. Thread-safe.
class HostEvent final : public Fence {
 public:
  // Calls `action` when the point is reached: on the stream's thread, or at once on the caller's.
  void then(std::function<void()> action) const;
  void reach();

 private:
  mutable std::mutex mutex_;
  bool reached_ = false;                                // guarded by mutex_, as the next
  mutable std::vector<std::function<void()>> actions_;  // not called yet
};

class HostStream {
 public:
  HostStream();
  HostStream(const HostStream&) = delete;
  HostStream& operator=(const HostStream&) = delete;
  ~HostStream();  // finishes what is queued

  void enqueue(std::function<void()> work);
  [[nodiscard]] std::shared_ptr<const HostEvent> record();
  void synchronize();  // waits for what is queued so far

  // What Device::fence of the host's device takes as a stream, and the point in it: none for a
  // handle that no stream has.
  [[nodiscard]] std::uintptr_t handle() const { return reinterpret_cast<std::uintptr_t>(this); }
  [[nodiscard]] static std::shared_ptr<const HostEvent> record(std::uintptr_t handle);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;  // guarded by mutex_, as the next
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace lmkv
