// Which chunks of one's own namespace were evicted, for whoever wants to tell others.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "store/chunk_format.hpp"
#include "store/directory.hpp"
#include "store/tree_scan.hpp"

namespace lmkv {

// Thread-safe. Holds so many keys at most; more are forgotten, the newest first: nobody takes them.
class EvictedKeys {
 public:
  static constexpr std::size_t kMost = 1 << 16;

  explicit EvictedKeys(const ChunkPaths& paths) : namespace_(paths.namespace_name()) {}

  void add(const RankName& rank, const ChunkKey& key) {
    const std::string_view name(rank.namespace16.data(), rank.namespace16.size());
    if (name != namespace_) return;
    const std::lock_guard lock(mutex_);
    if (keys_.size() < kMost) keys_.push_back(key);
  }
  // Those since the last call.
  [[nodiscard]] std::vector<ChunkKey> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(keys_, {});
  }

 private:
  const std::string namespace_;
  std::mutex mutex_;
  std::vector<ChunkKey> keys_;
};

}  // namespace lmkv
