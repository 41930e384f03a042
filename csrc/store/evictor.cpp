#include "store/evictor.hpp"

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>

#include "common/posix.hpp"

namespace lmkv {
namespace {

class LeastRecentlyUsed final : public EvictionPolicy {
 public:
  [[nodiscard]] double worth(const FileFacts& facts, std::int64_t now_ns) const override {
    // Relative to now, so that a double holds it to far less than kUsePerToken.
    return static_cast<double>(facts.modified_ns - now_ns);
  }
};

// Equal worth: the same order on every host, whatever order the directory is read in.
bool less_worth(const Candidate& a, const Candidate& b) {
  return a.worth != b.worth ? a.worth < b.worth : a.key.bytes < b.key.bytes;
}

bool more_worth(const Candidate& a, const Candidate& b) { return less_worth(b, a); }

// As well as gone: a link has come into its place.
bool is_no_more(int error) { return is_gone(error) || error == ELOOP; }

}  // namespace

std::unique_ptr<EvictionPolicy> make_least_recently_used() {
  return std::make_unique<LeastRecentlyUsed>();
}

void Candidates::offer(const Candidate& candidate) {
  assert(!sorted_);
  if (heap_.size() == limit_) {
    if (!less_worth(candidate, heap_.front())) return;
    std::pop_heap(heap_.begin(), heap_.end(), less_worth);
    heap_.pop_back();
  }
  heap_.push_back(candidate);
  std::push_heap(heap_.begin(), heap_.end(), less_worth);
}

std::optional<Candidate> Candidates::take() {
  if (!sorted_) std::sort(heap_.begin(), heap_.end(), more_worth);
  sorted_ = true;
  if (heap_.empty()) return std::nullopt;
  const Candidate least = heap_.back();
  heap_.pop_back();
  return least;
}

Eviction evict(const std::string& root, const Candidate& candidate, std::int64_t settled_ns) {
  const UniqueFd directory = open_chunk_directory(root, candidate.rank, candidate.key);
  if (directory.get() < 0) return is_no_more(errno) ? Eviction::kGone : Eviction::kFailed;
  const std::string name = chunk_file_name(candidate.key);
  FileFacts facts;
  if (!read_facts(directory.get(), name.c_str(), facts, Look::kAfresh)) {
    return errno == 0 || is_no_more(errno) ? Eviction::kGone : Eviction::kFailed;
  }
  if (facts.modified_ns != candidate.modified_ns || facts.changed_ns > settled_ns) {
    return Eviction::kKept;
  }
  // Between the look and this a reader may come: it reads to the end, or finds a miss.
  if (::unlinkat(directory.get(), name.c_str(), 0) != 0) {
    return is_no_more(errno) ? Eviction::kGone : Eviction::kFailed;
  }
  return Eviction::kEvicted;
}

}  // namespace lmkv
