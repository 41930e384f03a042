// What both pipelines work with.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arena/arena_pool.hpp"
#include "common/busy_time.hpp"
#include "device/device.hpp"
#include "device/segment_table.hpp"
#include "engine/engine_options.hpp"
#include "engine/jobs.hpp"
#include "engine/remote_tier.hpp"
#include "engine/roots.hpp"
#include "engine/slab_pool.hpp"
#include "engine/stats.hpp"
#include "store/chunk_format.hpp"

namespace lmkv {

// Engine::close() has ended every job and every callback before any of it goes.
struct EngineContext {
  EngineContext(const EngineOptions& with, EngineParts parts);
  EngineContext(const EngineContext&) = delete;
  EngineContext& operator=(const EngineContext&) = delete;
  // What was abandoned stays mapped until the process ends.
  ~EngineContext();

  // Throw std::invalid_argument.
  [[nodiscard]] ChunkIdentity identity(const ChunkKey& key, std::uint64_t token_begin,
                                       std::size_t blocks) const;
  void check_blocks(const std::vector<BlockId>& blocks) const;

  // A chunk that is in a slab, sealed, in the shape that is asked for.
  [[nodiscard]] SlabPool::Found find_in_memory(const ChunkIdentity& wanted);

  const EngineOptions options;
  const SegmentTable table;
  Stats stats;
  BusyTime reading;  // chunk files, from the call to the last byte
  BusyTime writing;
  std::atomic<std::uint64_t> checksum_ns{0};  // of all threads, stores and loads
  JobBoard jobs;
  std::atomic<bool> closed{false};
  std::unique_ptr<Device> device;
  std::string arena_error;  // why there is no arena where one was asked for
  std::unique_ptr<SlabPool> pool;
  std::unique_ptr<Roots> roots;
  // Behind them; nullptr if there is none. One of the next two, if it is there.
  std::unique_ptr<Tier> remote;
  Root* remote_root = nullptr;
  RemoteTier* remote_orders = nullptr;
  std::string remote_error;  // why there is none where one was asked for

  // On their way to the roots.
  [[nodiscard]] std::size_t slabs_of_stores() const;
  // That can be used: roots, and the remote one.
  [[nodiscard]] std::vector<Tier*> tiers() const;
  // Of the slabs: what copies between tiers may hold each way, and half of what may be abandoned.
  [[nodiscard]] std::size_t part_of_slabs() const;

  // Nobody has this slab any more: a transfer that has failed may still write to it. After so many
  // nothing more is got from the remote tier, for good. Any thread.
  void abandon(Slab slab);
  [[nodiscard]] std::size_t abandoned() const;

 private:
  void make_remote(RootParts parts);
  std::unique_ptr<SlabPool> make_pool(ArenaPool::Reach reach);

  mutable std::mutex mutex_;
  std::vector<Slab> abandoned_;  // guarded by mutex_
};

}  // namespace lmkv
