// The chunks that go first, and the removal of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/posix.hpp"
#include "common/types.hpp"
#include "store/tree_scan.hpp"

namespace lmkv {

// One chunk that may be evicted: below 100 bytes, however many files there are.
struct Candidate {
  double worth = 0;
  ChunkKey key;
  RankName rank;
  std::uint64_t bytes = 0;
  std::int64_t modified_ns = 0;  // when it was scanned
};
static_assert(sizeof(Candidate) <= 100);

// The `limit` chunks of least worth among all that were offered. Not thread-safe.
class Candidates {
 public:
  explicit Candidates(std::size_t limit) : limit_(limit) {}

  void clear() {
    heap_.clear();
    sorted_ = false;
  }
  // Not after the first take().
  void offer(const Candidate& candidate);
  // The one of least worth; empty when all are taken.
  std::optional<Candidate> take();
  // What take() would return, or null.
  [[nodiscard]] const Candidate* next();
  [[nodiscard]] std::size_t size() const { return heap_.size(); }

 private:
  std::size_t limit_;
  std::vector<Candidate> heap_;  // the most worth first; after the first take() sorted like that
  bool sorted_ = false;
};

enum class Eviction {
  kEvicted,
  kGone,    // somebody else was faster, or it is not a file any more
  kKept,    // used since the scan, or changed after `settled_ns`
  kFailed,  // errno says why
};

// Removes the candidate's file unless somebody has used it since it was scanned. `settled_ns`:
// what changed later than this, by the filesystem's clock, stays (but for what changed after
// `now_ns`, which it did not: store/file_times.hpp). Blocks on the disk.
[[nodiscard]] Eviction evict(const std::string& root, const Candidate& candidate,
                             std::int64_t settled_ns, std::int64_t now_ns = system_now_ns());

}  // namespace lmkv
