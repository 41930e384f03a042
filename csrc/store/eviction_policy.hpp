// What a chunk that may be evicted is worth: the seam, and the two orders that there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/types.hpp"
#include "store/tree_scan.hpp"

namespace lmkv {

// What scans see of chunks -> their worth. The least worth goes first. One thread: housekeeping's.
class EvictionPolicy {
 public:
  EvictionPolicy() = default;
  EvictionPolicy(const EvictionPolicy&) = delete;
  EvictionPolicy& operator=(const EvictionPolicy&) = delete;
  virtual ~EvictionPolicy() = default;

  // Before the first chunk of a scan. `now_ns`: by the clock that stamps files; of all its chunks.
  virtual void begin_scan(std::int64_t now_ns) = 0;
  // Of each chunk that the scan finds, once: also of those that are not to be evicted.
  [[nodiscard]] virtual double worth(const RankName& rank, const ChunkKey& key,
                                     const FileFacts& facts) = 0;
  // It was removed for its worth.
  virtual void evicted(const RankName&, const ChunkKey&) {}
};

enum class EvictionOrder { kReuse, kLeastRecentlyUsed };
std::unique_ptr<EvictionPolicy> make_eviction_policy(EvictionOrder order);

std::unique_ptr<EvictionPolicy> make_least_recently_used();

struct ReuseOptions {
  // Chunks that are remembered, at most, evicted ones among them: about 60 bytes each. With more
  // files than a fifth of that a part of them stands for all.
  std::size_t remembered = 1 << 19;
};

// By how soon chunks of the same kind were used again (docs/decisions/0013):
//
// Kinds are how often a chunk was used, and whether it lies deeper in its prompt than half of all.
// What scans find changed since the last one, or there again after it was evicted, says how long
// after a use the next one came. A chunk whose last use was so long ago is worth the most uses for
// the time of keeping it that any horizon promises: those that came until then, divided by how long
// chunks of its kind stayed until their next use or the horizon (Gittins' index). Never more than
// that of a chunk that was used later, or more often, or lies less deep: a prefix's tail goes
// before its head. A chunk that comes back after it was evicted brings its uses along. While little
// is known, and where uses say nothing, the least recently used go first.
std::unique_ptr<EvictionPolicy> make_reuse_policy(const ReuseOptions& options = {});

}  // namespace lmkv
