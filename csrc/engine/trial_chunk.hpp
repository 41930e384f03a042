// What is read of a directory to see whether it works again.
#pragma once

#include <cstddef>
#include <mutex>

#include "common/types.hpp"

namespace lmkv {

// The last chunk that could be read or was written; until there is one, the last that could not be
// read: a sector that is bad for ever must not speak for a disk. Thread-safe.
class TrialChunk {
 public:
  struct File {
    ChunkKey key;
    std::size_t bytes = kPageBytes;  // of a key that nothing has: it is missing, if it can be asked
  };

  void worked(const ChunkKey& key, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    file_ = {key, bytes};
    has_worked_ = true;
  }
  void failed(const ChunkKey& key, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!has_worked_) file_ = {key, bytes};
  }
  [[nodiscard]] File file() const {
    const std::lock_guard lock(mutex_);
    return file_;
  }

 private:
  mutable std::mutex mutex_;
  File file_;
  bool has_worked_ = false;
};

}  // namespace lmkv
