// Walks everything under a root that is lmkv's: all namespaces and ranks, whoever wrote them.
//
// What is ours is told by its name alone: v1/<16 hex>/r<rank>/<hhh>/<64 hex>.kv, and beside it
// <host>-<pid>-<16 hex>, and in the tmp directories of namespaces and ranks <host>-<pid>-<letters
// and digits>. Anything else is neither counted nor shown. Symbolic links are not followed (but for
// the root itself, which is the user's); one in the place of a directory of ours makes the scan
// incomplete. Memory does not grow with the number of files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/types.hpp"
#include "common/unique_fd.hpp"
#include "store/tree_names.hpp"

namespace lmkv {

struct FileFacts {
  std::uint64_t bytes = 0;       // on the disk: see space_of()
  std::int64_t modified_ns = 0;  // since the epoch
  std::int64_t changed_ns = 0;   // by the filesystem's own clock; not before it, if that is coarse
  std::uint64_t size = 0;        // of the file
};

// One rank of one namespace.
struct RankName {
  std::array<char, 16> namespace16{};
  std::uint32_t rank = 0;
  friend bool operator==(const RankName&, const RankName&) = default;
};

class TreeVisitor {
 public:
  virtual void on_chunk(const RankName& rank, const ChunkKey& key, const FileFacts& facts) = 0;
  // `directory` is open while the call lasts.
  virtual void on_temporary(int directory, const char* name, const FileFacts& facts) = 0;
  // Asked before every directory and file; false ends the walk.
  virtual bool keep_going() = 0;

 protected:
  ~TreeVisitor() = default;
};

enum class ScanOutcome {
  kComplete,
  kIncomplete,  // something could not be read: there may be more than was shown
  kStopped,     // by keep_going()
};

// Blocks on the disk. A root without a tree in it is complete and empty; a root that cannot be
// opened is incomplete.
[[nodiscard]] ScanOutcome scan_tree(const std::string& root, TreeVisitor& visitor);

// Opens the directory that holds `key`, no link on the way followed; -1 with errno if it cannot.
[[nodiscard]] UniqueFd open_chunk_directory(const std::string& root, const RankName& rank,
                                            const ChunkKey& key);

// What a file counts as: what is allocated, or its size where the filesystem does not say (some
// FUSE and object filesystems) or may not have allocated all of it yet; longer than any chunk, it
// counts as what is allocated in any case.
[[nodiscard]] std::uint64_t space_of(std::uint64_t allocated, std::uint64_t size,
                                     std::int64_t changed_ns, std::int64_t now_ns);

// kAfresh: a network filesystem asks its server (stat_afresh), once a file: not for whole scans.
enum class Look { kAsKnown, kAfresh };

// Facts of the regular file `name`; false if there is none, with errno 0 for what is no file.
[[nodiscard]] bool read_facts(int directory, const char* name, FileFacts& facts,
                              Look look = Look::kAsKnown);

}  // namespace lmkv
