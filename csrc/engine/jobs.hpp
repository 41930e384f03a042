// What an engine is asked for and what it answers.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "common/types.hpp"

namespace lmkv {

struct LoadChunk {
  ChunkKey key;
  std::uint64_t token_begin = 0;
  std::uint32_t block_count = 0;  // blocks in the file
  std::uint32_t first_block = 0;  // the first that is wanted
  std::vector<BlockId> blocks;    // where it and those behind it go
};

struct UsedChunk {
  ChunkKey key;
  std::uint64_t token_begin = 0;
};

enum class CompletionKind { kGathered, kStored, kLoaded };

struct Completion {
  CompletionKind kind{};
  JobId job{};
  std::vector<std::size_t> failed_chunks;       // kLoaded: indices into the job's chunks
  std::string error;                            // empty on success; the first one for kLoaded
  std::vector<std::size_t> memory_chunks{};     // kLoaded: those that were still in host memory
  std::vector<std::size_t> cancelled_chunks{};  // of failed_chunks, those that cancel() gave up
  std::vector<std::size_t> remote_chunks{};     // kLoaded: those that the remote tier brought
  double seconds = 0;                           // kLoaded: since load()
};

// Jobs under way and what became of the others. Thread-safe; never blocks but in wait_idle().
class JobBoard {
 public:
  [[nodiscard]] JobId begin();
  void complete(Completion completion);  // the job goes on
  void end(Completion completion);
  // Work of which nobody is told.
  void begin_quietly();
  void end_quietly();
  [[nodiscard]] std::vector<Completion> poll();
  [[nodiscard]] std::size_t in_flight() const;
  // True when no job is in flight any more; false after `timeout`.
  [[nodiscard]] bool wait_idle(std::chrono::duration<double> timeout);

 private:
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  std::uint64_t next_ = 1;
  std::size_t in_flight_ = 0;
  std::vector<Completion> completions_;
};

}  // namespace lmkv
