// Chunks on their way from one tier to another, with nobody waiting for them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_set>

#include "engine/engine_context.hpp"

namespace lmkv {

// Up to the remote tier what was stored, down to a directory what the remote tier had. A chunk is
// copied from its slab, so it is gathered, read and verified once; while it is on its way the slab
// is not reused, and so no more than an eighth of all slabs are at a time, either way. What comes
// beyond that is dropped and counted: it can be loaded from where it is. Thread-safe; never blocks.
class TierCopies {
 public:
  explicit TierCopies(EngineContext& context) : context_(context) {}

  // Copies a chunk that is in memory, unless the tier is known to have it. `done` is called once,
  // at the end, if this returns true, and else not.
  bool begin(Tier& to, const ChunkIdentity& chunk, std::int64_t used_ns,
             std::function<void()> done = {});

  // The remote tier had or was given this chunk.
  void note_remote(const ChunkKey& key);

 private:
  struct Copy;

  [[nodiscard]] bool may_begin(Tier& to, const ChunkIdentity& chunk);
  [[nodiscard]] bool is_remote(const Tier& tier) const { return &tier == context_.remote.get(); }
  void end(const Copy& copy, const Status& status, Tier::WriteOutcome outcome);

  EngineContext& context_;
  std::atomic<std::size_t> up_{0};    // slabs of copies to the remote tier
  std::atomic<std::size_t> down_{0};  // and from it

  // What was seen there, in two generations: the older goes when the younger is full. A chunk that
  // has gone from there since is not copied by its next use, but by the next store.
  std::mutex mutex_;
  std::unordered_set<ChunkKey, ChunkKeyHash> younger_;
  std::unordered_set<ChunkKey, ChunkKeyHash> older_;
};

}  // namespace lmkv
