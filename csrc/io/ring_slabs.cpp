#include "io/ring_slabs.hpp"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace lmkv {
namespace {

// The kernel's, for one table and one entry.
constexpr std::size_t kMaxEntries = 1 << 14;
constexpr std::size_t kMaxEntryBytes = 1 << 30;

}  // namespace

int RingSlabs::open(io_uring& ring, const SlabMemory& memory) {
  const std::size_t slabs = std::min(memory.bytes / memory.slab_bytes, kMaxEntries);
  int error = memory.slab_bytes > kMaxEntryBytes ? -EFBIG : 0;
  if (error == 0) error = io_uring_register_buffers_sparse(&ring, static_cast<unsigned>(slabs));
  if (error < 0) {
    refusal_.store(error, std::memory_order_relaxed);
    return error;
  }
  memory_ = memory;
  registered_.assign(slabs, false);
  slabs_.store(slabs, std::memory_order_relaxed);
  return 0;
}

int RingSlabs::entry_of(io_uring& ring, const std::byte* begin, std::size_t bytes) {
  if (registered_.empty() || begin < memory_.begin) return -1;
  const auto at = static_cast<std::size_t>(begin - memory_.begin);
  const std::size_t slab = at / memory_.slab_bytes;
  const bool inside =
      slab < registered_.size() && at % memory_.slab_bytes + bytes <= memory_.slab_bytes;
  if (!inside) return -1;
  if (registered_[slab]) return static_cast<int>(slab);
  if (refusal_.load(std::memory_order_relaxed) < 0) return -1;
  const iovec memory{memory_.begin + slab * memory_.slab_bytes, memory_.slab_bytes};
  const __u64 untagged = 0;
  // Returns how many entries were filled.
  const int filled = io_uring_register_buffers_update_tag(&ring, static_cast<unsigned>(slab),
                                                          &memory, &untagged, 1);
  if (filled != 1) {
    refusal_.store(filled < 0 ? filled : -ENOMEM, std::memory_order_relaxed);
    return -1;
  }
  registered_[slab] = true;
  count_.fetch_add(1, std::memory_order_relaxed);
  return static_cast<int>(slab);
}

std::string RingSlabs::in_words() const {
  const int refusal = refusal_.load(std::memory_order_relaxed);
  const std::size_t count = count_.load(std::memory_order_relaxed);
  const std::size_t slabs = slabs_.load(std::memory_order_relaxed);
  std::string reason = std::strerror(-refusal);
  if (refusal == -ENOMEM || refusal == -EPERM) reason += " (the limit of locked memory, ulimit -l)";
  if (slabs == 0) return refusal == 0 ? "none" : "none: " + reason;
  std::string words = std::to_string(count) + " of " + std::to_string(slabs) + " slabs";
  if (refusal != 0) words += ", no more: " + reason;
  return words;
}

}  // namespace lmkv
