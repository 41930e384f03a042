// Gives memory its pages before they are needed.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>

#include "common/doorbell.hpp"

namespace lmkv {

// A thread that has the kernel back the beginning of a private mapping with pages, as far as it is
// told. Whoever uses memory that has none waits, at every page that it touches, for one to be
// zeroed. Contents stay as they are. On kernels before 5.14 it does nothing.
class PageSupply {
 public:
  // Throws std::system_error if there can be no more threads.
  PageSupply(std::byte* begin, std::size_t bytes);
  PageSupply(const PageSupply&) = delete;
  PageSupply& operator=(const PageSupply&) = delete;
  // Returns within milliseconds of processor time.
  ~PageSupply();

  // Have pages up to `end` bytes, soon. Any thread; never blocks.
  void reach(std::size_t end);

 private:
  void run();

  std::byte* const begin_;
  const std::size_t bytes_;
  // No lock: the thread hardly runs while others compute.
  std::atomic<std::size_t> wanted_{0};
  std::atomic<bool> ends_{false};
  Doorbell changed_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace lmkv
