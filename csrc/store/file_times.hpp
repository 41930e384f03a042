// What a file's times are worth where clocks may be wrong: of a host that shares the root, or of
// this one before its clock was set.
//
// "Now" is always the filesystem's own time: a file's change time is by that clock, whoever writes.
// Its modification time is what an engine set, by its host's clock. Either may lie in the future of
// a clock that was set back since. Times are nanoseconds since the epoch (common/posix.hpp).
#pragma once

#include <cstdint>

#include "common/clocks.hpp"
#include "store/directory.hpp"
#include "store/tree_scan.hpp"

namespace lmkv {

// Whether a file changed after `settled_ns`. One that changed in the future did not.
[[nodiscard]] constexpr bool changed_since(std::int64_t settled_ns, std::int64_t changed_ns,
                                           std::int64_t now_ns) {
  return changed_ns > settled_ns && !is_of_the_future(changed_ns, now_ns);
}

// Whether nobody has written to a temporary file since `before_ns`. Where its modification time is
// of the future, its change time decides: who writes sets both.
[[nodiscard]] constexpr bool is_abandoned(const FileFacts& facts, std::int64_t before_ns,
                                          std::int64_t now_ns) {
  if (!is_of_the_future(facts.modified_ns, now_ns)) return facts.modified_ns < before_ns;
  return !changed_since(before_ns, facts.changed_ns, now_ns);
}

// Now, by the filesystem's clock; ours where it does not tell. Blocks on the disk.
[[nodiscard]] std::int64_t filesystem_now_ns(const ChunkPaths& paths);

}  // namespace lmkv
