// Chunks on their way from one tier to another, with nobody waiting for them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "engine/engine_context.hpp"

namespace lmkv {

// Up to the remote tier what was stored, down to a directory what the remote tier had. A chunk is
// copied from its slab, so it is gathered, read and verified once; while it is on its way the slab
// is not reused, and so no more than an eighth of all slabs are at a time, either way, nor so many
// that loads would find none. What comes beyond that is dropped and counted: it can be loaded from
// where it is. Copies down, which loads have brought about, wait until loads are over, as far as
// they are few. Thread-safe; never blocks.
class TierCopies {
 public:
  using Clock = std::chrono::steady_clock;

  explicit TierCopies(EngineContext& context) : context_(context) {}

  // What is called when a slab has come free. Before the first copy.
  void when_one_ends(std::function<void()> call) { one_ended_ = std::move(call); }

  // Copies a chunk that is in memory, unless the tier is known to have it. `done` is called once,
  // at the end, if this returns true, and else not.
  bool begin(Tier& to, const ChunkIdentity& chunk, std::int64_t used_ns,
             std::function<void()> done = {});

  // Reads are over, or time has passed: copies that have waited for that begin.
  void begin_held(Clock::time_point now = Clock::now());

  // The remote tier had or was given this chunk: uses of it do not bring it there, for a while.
  void note_remote(const ChunkKey& key, Clock::time_point now = Clock::now());
  // It has not, or not any more.
  void note_gone(const ChunkKey& key);
  // Slabs that are on their way.
  [[nodiscard]] std::size_t slabs() const { return up_ + down_; }

 private:
  struct Copy;

  [[nodiscard]] bool may_begin(Tier& to, const ChunkIdentity& chunk);
  // Whether it is new among those on their way to that tier.
  [[nodiscard]] bool begin_key(bool up, const ChunkKey& key);
  void end_key(bool up, const ChunkKey& key);
  [[nodiscard]] bool is_known_remote(const ChunkKey& key, Clock::time_point now);
  [[nodiscard]] bool is_remote(const Tier& tier) const { return &tier == context_.remote.get(); }
  void hold(std::shared_ptr<Copy> copy);
  void write(std::shared_ptr<Copy> copy);
  void end(Copy& copy, const Status& status, Tier::WriteOutcome outcome);
  void count_end(const Copy& copy, const Status& status, Tier::WriteOutcome outcome);

  EngineContext& context_;
  std::atomic<std::size_t> up_{0};    // slabs of copies to the remote tier
  std::atomic<std::size_t> down_{0};  // and from it

  std::function<void()> one_ended_ = [] {};

  // What was seen there, in two generations: the older goes when the younger is full, or old. So
  // what has gone from there since, without a word, is brought again by a use some minutes later.
  std::mutex mutex_;
  std::unordered_set<ChunkKey, ChunkKeyHash> younger_;  // guarded by mutex_, as all below
  std::unordered_set<ChunkKey, ChunkKeyHash> older_;
  Clock::time_point begun_ = Clock::now();               // of the younger
  std::unordered_set<ChunkKey, ChunkKeyHash> going_up_;  // on their way
  std::unordered_set<ChunkKey, ChunkKeyHash> going_down_;
  std::deque<std::shared_ptr<Copy>> held_;  // of those, not begun
};

}  // namespace lmkv
