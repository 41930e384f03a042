// Slabs in an arena: what any engine of the node stored or loaded is found by all of them.
#pragma once

#include <atomic>
#include <chrono>
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
#include "arena/arena_pages.hpp"
#include "common/doorbell.hpp"
#include "engine/slab_pool.hpp"

namespace lmkv {

// One engine's part in an arena. A thread of its own looks after what dead members had, and has
// pages brought ahead of their use.
class ArenaPool final : public SlabPool {
 public:
  // Joins the arena of `place`, or makes one of about `bytes`. Its chunks are those of this
  // namespace and rank. Throws ArenaError. Blocks while a device that pins memory takes all of it.
  enum class Reach { kLocal, kRemote };  // the disks that read into it
  ArenaPool(const ArenaPlace& place, std::uint64_t bytes, const NamespaceDigest& name_space,
            std::uint32_t rank, Reach reach, Device& device);
  ~ArenaPool() override;

  [[nodiscard]] SharedSlab publish(Slab slab, const ChunkKey& key) override;
  void disclaim(const Slab& slab) override;
  void end_threads() override;
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
  [[nodiscard]] std::optional<std::uint32_t> take_bare();
  // Gives one from take_bare() back; `failed` is 0 if it has pages now.
  void put_back(std::uint32_t slot, int failed);
  // Memory for one more slot, now. 0; errno; or -1 when all have some, or the arena's lock is not
  // to be had.
  [[nodiscard]] int bring_pages();
  // A slot that another has brought, and that is not mapped here yet: its first use need have no
  // page faults then.
  [[nodiscard]] std::optional<std::uint32_t> next_to_map();

  void keep_house();  // house_'s, as are all below
  void bury_the_dead();
  void order_pages();
  void note(const ArenaPages::Outcome& outcome);
  void note_growth(int failed);  // what bring_pages() returned

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
  std::vector<std::uint32_t> disclaimed_;  // the same

  std::vector<bool> is_mapped_;  // by slot; the constructor's, then house_'s, as the next two
  std::uint32_t mapped_to_ = 0;
  std::chrono::steady_clock::time_point may_grow_;

  std::atomic<bool> ends_{false};
  std::atomic<bool> wants_one_now_{false};  // somebody was refused a slab for want of pages
  Doorbell house_wakes_;
  std::optional<ArenaPages> pages_;
  std::thread house_;  // last: it uses all of the above
};

}  // namespace lmkv
