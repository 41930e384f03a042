// Looks at chunks' files as tools do: without an engine, and expecting nothing of them.
#pragma once

#include <cstdint>
#include <string>

#include "store/chunk_format.hpp"
#include "store/tree_scan.hpp"

namespace lmkv {

enum class Finding {
  kSound,
  kBad,         // `text` says what; no engine loads it
  kGone,        // there is no such file any more
  kUnreadable,  // `text` says why: nothing is known of it
};

struct Inspection {
  Finding finding = Finding::kGone;
  std::string text;
  ChunkIdentity identity;   // of a sound file
  std::uint64_t bytes = 0;  // of the file, if it could be opened
  std::int64_t modified_ns = 0;
  std::int64_t changed_ns = 0;
};

enum class Inspect { kHeader, kHeaderAndBlocks };

// Reads the file of `key`, which may be anything: no link is followed, no FIFO waited for, and
// memory is bounded whatever the header says. What was read leaves the page cache again. Blocks on
// the disk.
[[nodiscard]] Inspection inspect_chunk(const std::string& root, const RankName& rank,
                                       const ChunkKey& key, Inspect depth);

}  // namespace lmkv
