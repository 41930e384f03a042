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
    bad_in_a_row_ = 0;
  }
  void failed(const ChunkKey& key, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!has_worked_) file_ = {key, bytes};
  }
  // It came damaged. After some times it is not asked for again: it may be damaged for ever.
  void was_bad() {
    const std::lock_guard lock(mutex_);
    if (++bad_in_a_row_ < kMostBad) return;
    file_ = {};
    has_worked_ = false;
    bad_in_a_row_ = 0;
  }
  [[nodiscard]] File file() const {
    const std::lock_guard lock(mutex_);
    return file_;
  }

 private:
  static constexpr int kMostBad = 5;

  mutable std::mutex mutex_;
  File file_;
  bool has_worked_ = false;
  int bad_in_a_row_ = 0;
};

}  // namespace lmkv
