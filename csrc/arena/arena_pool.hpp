// Slabs in an arena: what any engine of the node stored or loaded is found by all of them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "arena/arena_file.hpp"
#include "arena/arena_lock.hpp"
#include "arena/arena_members.hpp"
#include "engine/slab_pool.hpp"

namespace lmkv {

// One engine's part in an arena. A thread of its own brings pages ahead of their use and looks
// after what dead members had.
class ArenaPool final : public SlabPool {
 public:
  // Joins the arena of `place`, or makes one of about `bytes`. Its chunks are those of this
  // namespace and rank. Throws ArenaError. Blocks while a device that pins memory takes all of it.
  enum class Reach { kLocal, kRemote };  // the disks that read into it
  ArenaPool(const ArenaPlace& place, std::uint64_t bytes, const NamespaceDigest& name_space,
            std::uint32_t rank, Reach reach, Device& device);
  ~ArenaPool() override;

  [[nodiscard]] SharedSlab publish(Slab slab, const ChunkKey& key) override;
  [[nodiscard]] Found find(const ChunkKey& key) override;
  [[nodiscard]] SlabCounts counts() const override;
  [[nodiscard]] SlabMemory memory() const override;
  [[nodiscard]] std::size_t shared_slab_bytes() const override { return memory().slab_bytes; }
  [[nodiscard]] std::size_t sharers() const override { return slots_.members(); }
  [[nodiscard]] std::string info() const override;

 private:
  // What this process has of a slot.
  struct Use {
    std::uint32_t handles = 0;
    bool is_published = false;
  };

  [[nodiscard]] std::optional<Slab> acquire(const ChunkKey* wanted) override;
  [[nodiscard]] std::span<std::byte> bytes_of(std::size_t index) const override;
  void release(std::size_t index) override;

  [[nodiscard]] SlotName name_of(const ChunkKey& key) const;
  void give_back_kept();  // with both locks
  // Whether there are fewer slots with pages that nobody uses than there should be.
  [[nodiscard]] bool is_short_of_pages() const;
  [[nodiscard]] std::uint32_t slots_with_pages() const;
  // Memory for one more slot. 0; errno; or -1 when all have some, or the arena's lock is not to be
  // had.
  [[nodiscard]] int bring_pages();
  // Maps a slot that another has brought: its first use needs no page faults. False when all are.
  [[nodiscard]] bool map_one();
  void keep_house();

  Device& device_;
  const bool is_remote_;
  std::atomic<bool> is_full_{false};  // the filesystem has no memory for more slots
  const SlotName name_;               // but for the key
  const JoinedArena arena_;
  mutable ArenaSlots<> slots_;
  const std::uint32_t node_;
  const std::uint32_t slots_ahead_;

  mutable std::mutex mutex_;         // the arena's lock is inside it
  mutable ImpatientLock lock_;       // the arena's; guarded by mutex_, as uses_, in_use_ and kept_
  std::vector<Use> uses_;            // by slot; guarded by mutex_, as the next two
  std::size_t in_use_ = 0;           // slots with handles
  std::vector<std::uint32_t> kept_;  // to be given back, when the arena's lock can be had

  std::vector<bool> is_mapped_;  // by slot; the constructor's, then house_'s
  std::uint32_t next_to_map_ = 0;

  std::mutex house_mutex_;
  std::condition_variable house_wakes_;
  bool ends_ = false;  // guarded by house_mutex_, as the next
  bool wants_pages_ = false;
  std::thread house_;  // last: it uses all of the above
};

}  // namespace lmkv
