// The slabs that one ring has registered: io_uring then neither looks their pages up nor takes and
// gives them back at every request.
#pragma once

#include <liburing.h>

#include <atomic>
#include <cstddef>
#include <string>
#include <vector>

#include "io/io_engine.hpp"

namespace lmkv {

// A table with an entry for each slab, filled when the slab is first used: to register memory is to
// pin it, and so to take it. Ring thread only, but for in_words().
class RingSlabs {
 public:
  // Makes the empty table. Returns 0 or -errno; then there are no entries, and all goes without.
  int open(io_uring& ring, const SlabMemory& memory);

  // The entry that these bytes lie in, made now if it is not there yet, or -1.
  int entry_of(io_uring& ring, const std::byte* begin, std::size_t bytes);

  // How many slabs are registered, or why none or no more. Any thread.
  [[nodiscard]] std::string in_words() const;

 private:
  SlabMemory memory_;
  std::vector<bool> registered_;
  std::atomic<std::size_t> count_{0};  // of those
  std::atomic<std::size_t> slabs_{0};
  std::atomic<int> refusal_{0};  // -errno; then nothing more is tried
};

}  // namespace lmkv
