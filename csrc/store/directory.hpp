// Where chunks are in the tree under a root, and which of them are there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/access.hpp"
#include "common/types.hpp"
#include "common/unique_fd.hpp"
#include "store/stripes.hpp"

namespace lmkv {

// Paths of one rank's chunks: <root>/v1/<namespace16>/r<rank>/<hhh>/<key>.kv, written as
// <hhh>/<host>-<pid>-<random>; tmp/ beside the <hhh> directories is for what is no chunk. Built
// from hex digits only, so no input can leave the tree.
class ChunkPaths {
 public:
  ChunkPaths(std::string root, const NamespaceDigest& namespace_digest, std::uint32_t rank);

  [[nodiscard]] std::string chunk(const ChunkKey& key) const;
  // As chunk(), relative to rank_directory().
  [[nodiscard]] static std::string chunk_below(const ChunkKey& key);
  // A name that no other writer has: host, process and a counter over a random start. In tmp/.
  [[nodiscard]] std::string unique_temporary() const;
  // The same in the directory of chunk(key): on ext4 a file stays near the directory that it was
  // made in, and there are many of those (docs/decisions/0012).
  [[nodiscard]] std::string unique_temporary(const ChunkKey& key) const;
  // Every directory that a store of `key` needs, outermost first, the root itself excluded.
  [[nodiscard]] std::vector<std::string> directories_for(const ChunkKey& key) const;
  [[nodiscard]] const std::string& root() const { return root_; }
  [[nodiscard]] const std::string& rank_directory() const { return rank_directory_; }
  // 16 hex digits.
  [[nodiscard]] std::string namespace_name() const;
  [[nodiscard]] const std::string& temporary_directory() const { return temporary_directory_; }

 private:
  [[nodiscard]] std::string directory_of(const ChunkKey& key) const;

  std::string root_;
  std::string version_directory_;
  std::string namespace_directory_;
  std::string rank_directory_;
  std::string temporary_directory_;
  std::string writer_;  // "<host>-<pid>-"
};

// Makes `root`, and its parents with the user's umask. One that is there stays as it is. Blocks on
// the disk: start-up only. Throws std::runtime_error.
void make_root(const std::string& root, Access access = Access::kPrivate);
// The root, then the directories below it that every store needs. As above. Throws also where a
// link stands for one of these: none is followed.
void make_tree(const ChunkPaths& paths, Access access = Access::kPrivate);
// The latter alone, as far as they can be made. False, with errno, if one is not there in the end.
bool make_directories(const ChunkPaths& paths, Access access);
// The same, with the directory of `key`.
bool make_directories(const ChunkPaths& paths, const ChunkKey& key, Access access);

enum class Until { kFirstAbsent, kEnd };

// Looks chunks up. A present entry is a hint: it may be bad, or gone, when it is loaded. Any thread
// may call it; copies share what is out of service, and nothing else changes. Blocks on the
// filesystem.
class Directory {
 public:
  Directory(const std::vector<std::string>& roots, const NamespaceDigest& namespace_digest,
            std::uint32_t ranks);

  // These roots, by index, are not asked: nothing of theirs is there. Replaces what was set before.
  void set_out_of_service(const std::vector<std::size_t>& roots);

  [[nodiscard]] const Stripes& stripes() const { return stripes_; }

  // Whether every rank has it, for each of `keys`, or for those up to the first absent one.
  [[nodiscard]] std::vector<bool> present(std::span<const ChunkKey> keys, Until until) const;
  // Number of leading `keys` that every rank has.
  [[nodiscard]] std::size_t lookup(std::span<const ChunkKey> keys) const;

 private:
  struct OpenRank {
    UniqueFd directory;
    bool may_be_remote = false;  // its names may be what a client remembers of a server's
  };
  // `open`: the ranks' directories, opened by the first call.
  [[nodiscard]] static bool is_in(const std::vector<ChunkPaths>& ranks, std::vector<OpenRank>& open,
                                  const ChunkKey& key);
  [[nodiscard]] static bool has(const OpenRank& rank, const std::string& path);

  Stripes stripes_;
  std::vector<std::vector<ChunkPaths>> roots_;  // each with its ranks
  std::shared_ptr<std::vector<std::atomic<bool>>> out_of_service_;
};

}  // namespace lmkv
