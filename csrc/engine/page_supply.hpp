// Gives memory its pages before they are needed.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>

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
  // Returns within milliseconds.
  ~PageSupply();

  // Have pages up to `end` bytes, soon. Any thread; never blocks on memory.
  void reach(std::size_t end);

 private:
  void run();

  std::byte* const begin_;
  const std::size_t bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t wanted_ = 0;  // guarded by mutex_, as below
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace lmkv
