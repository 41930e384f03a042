// What the pipelines ask of wherever chunks are kept, behind host memory.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "common/status.hpp"
#include "common/types.hpp"
#include "engine/root_health.hpp"
#include "engine/trial_chunk.hpp"
#include "io/direct_file.hpp"

namespace lmkv {

// A directory, or a remote engine. Thread-safe; no call blocks on it but where it says so. `done`
// callbacks run on the tier's threads; for what never started, inside cancel() or begin_shutdown(),
// or, after that, inside the call that asked.
class Tier {
 public:
  using WriteOutcome = FileWrite::Outcome;

  struct Read {
    ChunkKey key;
    // Page-aligned; may be written to until `done`, and for ever if that says kUnsettled.
    std::byte* buffer = nullptr;
    std::size_t bytes = 0;    // the chunk's exact size
    std::uint64_t group = 0;  // FileRead::group
    std::function<void(Status)> done;
  };

  struct Write {
    ChunkKey key;
    const std::byte* buffer = nullptr;  // page-aligned; read until `done`
    std::size_t bytes = 0;
    std::int64_t used_ns = 0;  // use_stamp()
    // kOk also when the chunk was there already: the outcome tells which.
    std::function<void(Status, WriteOutcome)> done;
  };

  Tier() = default;
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;
  virtual ~Tier() = default;

  RootHealth loads;
  RootHealth stores;
  TrialChunk trial_chunk;  // of loads
  // Chunks that came damaged, twice, since one has come whole.
  std::atomic<int> damaged{0};
  // Slabs of stores on their way to it.
  std::atomic<std::size_t> slabs_of_stores{0};

  virtual void read(Read request) = 0;
  virtual void write(Write request) = 0;
  virtual void remove(const ChunkKey& key, std::function<void(Status)> done) = 0;
  // The chunk was used. Nobody waits for it.
  virtual void touch(const ChunkKey& key, std::int64_t used_ns) = 0;
  // Whether a write of so many bytes is worth a try.
  [[nodiscard]] virtual bool has_room(std::size_t bytes) = 0;
  // Calls the reads of one group back with kCancelled that have not begun.
  virtual void cancel(std::uint64_t group) = 0;
  // Whether any read has begun and not ended; its answer may still be on the way.
  [[nodiscard]] virtual bool is_reading() const = 0;
  // For people.
  [[nodiscard]] virtual std::string name_of(const ChunkKey& key) const = 0;

  // Cancels what is queued, and takes in no more. Idempotent.
  virtual void begin_shutdown() = 0;
  // True when nothing is in flight any more, after begin_shutdown(); false after `timeout`.
  [[nodiscard]] virtual bool wait_idle(std::chrono::duration<double> timeout) = 0;
};

// Of a tier's stores on their way: one slab, while it lives.
class SlabShare {
 public:
  explicit SlabShare(Tier& tier) : tier_(&tier) {
    tier.slabs_of_stores.fetch_add(1, std::memory_order_relaxed);
  }
  SlabShare(const SlabShare&) = delete;
  SlabShare& operator=(const SlabShare&) = delete;
  ~SlabShare() { tier_->slabs_of_stores.fetch_sub(1, std::memory_order_relaxed); }

 private:
  Tier* tier_;
};

}  // namespace lmkv
