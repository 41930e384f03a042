// A load of several chunks, and how far each of them is.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "device/device.hpp"
#include "engine/jobs.hpp"
#include "engine/roots.hpp"
#include "engine/slab_pool.hpp"
#include "engine/tier.hpp"
#include "store/chunk_format.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {

// A chunk waits, is handed to the device, and has ended; as long as it waits it can be given up,
// and then whatever still comes of it is nobody's. Whoever ends a chunk counts that before it says
// settled(), so that what is counted is whole when the job is complete. Thread-safe.
class LoadJob {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Source : std::uint8_t { kDisk, kMemory, kRemote };

  LoadJob(std::shared_ptr<const Fence> after, UseTime used_at);

  const std::shared_ptr<const Fence> after;
  const UseTime used_at;
  const Clock::time_point begun = Clock::now();

  // Before it is begun: the next chunk, of the size of its file, and the tier that is asked first,
  // or nullptr.
  void add(std::uint64_t bytes, Tier* tier);
  [[nodiscard]] std::uint64_t bytes() const;
  // Starts it; constant from then on.
  void begin(JobId id, Clock::time_point deadline);
  [[nodiscard]] JobId id() const { return id_; }
  [[nodiscard]] std::uint64_t number() const { return static_cast<std::uint64_t>(id_); }
  [[nodiscard]] Clock::time_point deadline() const { return deadline_; }

  // These three return false for a chunk that was given up.
  [[nodiscard]] bool ask(std::size_t index, Tier& tier);
  [[nodiscard]] bool scatter(std::size_t index);
  [[nodiscard]] bool end(std::size_t index, const Status& status, Source source);

  struct GivenUp {
    std::size_t chunks = 0;
    std::uint64_t bytes = 0;
    std::set<Tier*> tiers;  // that they were asked of
  };
  // Every chunk that waits.
  GivenUp give_up(const Status& status);

  // Of so many chunks that have ended all is counted. True for the last.
  [[nodiscard]] bool settled(std::size_t chunks);
  // Once, when all are settled.
  [[nodiscard]] Completion completion();

 private:
  enum class Stage : std::uint8_t { kWaiting, kScattering, kEnded };
  struct Chunk {
    std::uint64_t bytes;
    Tier* tier;
    Stage stage = Stage::kWaiting;
  };

  JobId id_{};
  Clock::time_point deadline_;

  mutable std::mutex mutex_;  // of all below; the innermost
  std::vector<Chunk> chunks_;
  std::size_t left_ = 0;  // not settled
  Completion completion_;
};

// One chunk on its way.
struct ChunkLoad {
  std::shared_ptr<LoadJob> job;
  std::size_t index = 0;  // in the job
  LoadChunk chunk;
  ChunkIdentity identity;
  Root* root = nullptr;  // its directory, if that can be used
  Tier* tier = nullptr;  // that it is asked of
  std::optional<Slab> filling;
  std::optional<SharedSlab> verified;
  bool from_memory = false;
  bool was_bad = false;  // what the remote tier brought
};

}  // namespace lmkv
