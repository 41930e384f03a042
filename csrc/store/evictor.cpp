#include "store/evictor.hpp"

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <tuple>

#include "common/posix.hpp"
#include "store/file_times.hpp"

namespace lmkv {
namespace {

// Equal worth: the least recently used, so tails before heads; and the same order on every host,
// whatever order the directory is read in.
bool less_worth(const Candidate& a, const Candidate& b) {
  return std::tie(a.worth, a.modified_ns, a.key.bytes) <
         std::tie(b.worth, b.modified_ns, b.key.bytes);
}

bool more_worth(const Candidate& a, const Candidate& b) { return less_worth(b, a); }

// As well as gone: a link has come into its place.
bool is_no_more(int error) { return is_gone(error) || error == ELOOP; }

}  // namespace

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

const Candidate* Candidates::next() {
  if (!sorted_) std::sort(heap_.begin(), heap_.end(), more_worth);
  sorted_ = true;
  return heap_.empty() ? nullptr : &heap_.back();
}

std::optional<Candidate> Candidates::take() {
  const Candidate* const least = next();
  if (least == nullptr) return std::nullopt;
  const Candidate taken = *least;
  heap_.pop_back();
  return taken;
}

Eviction evict(const std::string& root, const Candidate& candidate, std::int64_t settled_ns,
               std::int64_t now_ns) {
  const UniqueFd directory = open_chunk_directory(root, candidate.rank, candidate.key);
  if (directory.get() < 0) return is_no_more(errno) ? Eviction::kGone : Eviction::kFailed;
  const std::string name = chunk_file_name(candidate.key);
  FileFacts facts;
  if (!read_facts(directory.get(), name.c_str(), facts, Look::kAfresh)) {
    return errno == 0 || is_no_more(errno) ? Eviction::kGone : Eviction::kFailed;
  }
  if (facts.modified_ns != candidate.modified_ns ||
      changed_since(settled_ns, facts.changed_ns, now_ns)) {
    return Eviction::kKept;
  }
  // Between the look and this a reader may come: it reads to the end, or finds a miss.
  if (::unlinkat(directory.get(), name.c_str(), 0) != 0) {
    return is_no_more(errno) ? Eviction::kGone : Eviction::kFailed;
  }
  return Eviction::kEvicted;
}

}  // namespace lmkv
