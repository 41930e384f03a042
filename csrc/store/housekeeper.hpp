// The engine's housekeeping thread: counts what is in the directory, evicts, and sweeps what
// dead writers left.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "common/access.hpp"
#include "io/direct_file.hpp"
#include "store/directory.hpp"
#include "store/eviction_policy.hpp"
#include "store/space.hpp"

namespace lmkv {

struct HousekeepingOptions {
  // Not evicted: what was stored or touched this short a time ago, by the filesystem's clock.
  std::chrono::milliseconds spared{5000};
  // A temporary file that nobody has written to for this long is its dead writer's. Far beyond what
  // one file takes, and beyond what the clocks of hosts that share a root differ by.
  std::chrono::seconds abandoned_after{std::chrono::hours(1)};
  std::chrono::milliseconds sample_interval{1000};   // looks at the filesystem's free space
  std::chrono::milliseconds scan_interval{300'000};  // at least: a scan's own time counts 20 times
  std::chrono::milliseconds lease_expiry{30'000};
  std::chrono::milliseconds stop_timeout{2000};
  EvictionOrder order = EvictionOrder::kReuse;
  std::chrono::seconds max_age{0};       // chunks go that were not used for so long; 0: none does
  Access access = Access::kPrivate;      // of what it creates
  std::size_t candidates = 1 << 18;      // held at once, below 100 bytes each
  std::size_t files_per_pass = 1 << 18;  // evicted by one pass at most; another may follow
};

// Owns one thread, which alone touches the disk. What waits for it waits for stop() at most.
class Housekeeper {
 public:
  // Returns at once: the first scan is the thread's.
  Housekeeper(const ChunkPaths& paths, const MountPlace& place, const SpaceLimits& limits,
              const HousekeepingOptions& options);
  Housekeeper(const Housekeeper&) = delete;
  Housekeeper& operator=(const Housekeeper&) = delete;
  ~Housekeeper() { stop(); }

  // Any thread, until the housekeeper goes.
  [[nodiscard]] SpaceLedger& space() const;

  // Ends the thread, or, where a system call hangs, leaves it behind after `stop_timeout`: it ends
  // when the call returns, and touches nothing of ours any more. Idempotent.
  void stop();

  [[nodiscard]] std::map<std::string, std::uint64_t> stats() const;
  // Of `paths`' namespace, whatever the rank, since the last call.
  [[nodiscard]] std::vector<ChunkKey> take_evicted();

 private:
  class Worker;
  // Shared with the thread, which may outlive us.
  std::shared_ptr<Worker> worker_;
};

}  // namespace lmkv
