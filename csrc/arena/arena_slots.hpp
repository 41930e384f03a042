// The protocol of an arena's slots: who may touch which slab, and what lies in it.
//
//             take                    publish                   take (nobody reads it)
//   kFree ------------> kFilling ---------------> kReady ------------------------------> kFilling
//     ^                 |      \                    |
//     |  give_back      |       \ reap: its         |  find: a holder more
//     |<----------------'        \ filler died      |  release: a holder less
//     |  readmit: after a while   v                 |
//     '----------------------- kOrphaned            '--> (nobody's: cached)
//
// Each state is one word, written last when a slot is won and first when it is lost, so that a
// process may be killed between any two writes: what a slot's word says is true. All else (lists,
// the index) is derived, and made anew by repair() when a process died with the lock. That this
// holds for every order of calls and every such moment is what tests/cpp/test_arena_slots.cpp
// tries out exhaustively, on this code: `Steps::step()` is called before every write.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "arena/arena_layout.hpp"

namespace lmkv {

// What disk and GPU still had under way for a process that died ends within this: the kernel gives
// up on an NVMe command after 30 s (nvme_core.io_timeout). A server that comes back may answer much
// later what was asked of it over a hard mount.
inline constexpr std::uint64_t kOrphanSeconds = 60;
inline constexpr std::uint64_t kRemoteOrphanSeconds = 3600;

struct NoSteps {
  static void step() {}
};

struct ArenaCounts {
  std::uint32_t total = 0;
  std::uint32_t unused = 0;
  std::uint32_t bare = 0;  // of these, without memory
  std::uint32_t filling = 0;
  std::uint32_t ready = 0;
  std::uint32_t held = 0;  // of these
  std::uint32_t orphaned = 0;
};

// A view of a mapped arena. All calls with the arena's lock but release(). `member`: the caller's
// own number, and `now`: seconds of CLOCK_MONOTONIC.
template <class Steps = NoSteps>
class ArenaSlots {
 public:
  explicit ArenaSlots(std::byte* arena)
      : header_(reinterpret_cast<const ArenaHeader*>(arena)),
        control_(reinterpret_cast<ArenaControl*>(arena + kPageBytes)),
        slots_(reinterpret_cast<ArenaSlot*>(arena + header_->slots_offset)),
        buckets_(reinterpret_cast<Shared32*>(arena + header_->buckets_offset)) {}

  [[nodiscard]] ArenaControl& control() const { return *control_; }
  [[nodiscard]] std::uint32_t count() const { return header_->slot_count; }
  // Without the lock, as they were a moment ago.
  [[nodiscard]] std::uint32_t unused_with_pages() const { return lengths(control_->unused); }
  [[nodiscard]] std::size_t members() const {
    return static_cast<std::size_t>(std::ranges::count_if(
        control_->members, [](const ArenaMember& member) { return get(member.joined) != 0; }));
  }
  [[nodiscard]] std::uint32_t bare() const { return lengths(control_->bare); }
  [[nodiscard]] SlotWord word(std::uint32_t slot) const {
    return SlotWord::unpack(slots_[slot].word.load(std::memory_order_acquire));
  }
  [[nodiscard]] std::uint64_t holders(std::uint32_t slot) const {
    return slots_[slot].holders.load(std::memory_order_acquire);
  }
  [[nodiscard]] SlotName name(std::uint32_t slot) const;

  // A slot to fill: an unused one that has pages, near ones first, or that of the least recently
  // used chunk that nobody reads. With `wanted`, others that look for it find out that it is on its
  // way.
  std::optional<std::uint32_t> take(std::uint8_t member, std::uint32_t node, std::uint64_t now,
                                    const SlotName* wanted = nullptr, bool is_remote = false);
  // An unused one that has none, to get some: taken as any other.
  std::optional<std::uint32_t> take_bare(std::uint8_t member, std::uint32_t node,
                                         std::uint64_t now);
  // Of a slot that was taken: the file has memory for it from now on.
  void set_pages(std::uint32_t slot);
  // What is in the slot is whole: it can be found, and the caller holds it. False if a chunk of
  // this name is there already; then the slot stays the caller's, and nobody finds it.
  [[nodiscard]] bool publish(std::uint8_t member, std::uint32_t slot, const SlotName& name);
  // Of a slot that was taken: nobody waits for it any more.
  void disclaim(std::uint32_t slot);
  // Of a slot that was taken and not published.
  void give_back(std::uint32_t slot);

  struct Found {
    SlotState state = SlotState::kFree;  // kReady: held from now on; kFilling: on its way; or none
    std::uint32_t slot = kNoSlot;
    std::uint64_t since = 0;  // kFilling
  };
  [[nodiscard]] Found find(std::uint8_t member, const SlotName& name);
  // Whether find() would hold it. Holds nothing.
  [[nodiscard]] bool has(const SlotName& name) const;
  // Without the lock: what was read has been read.
  void release(std::uint8_t member, std::uint32_t slot) {
    Steps::step();
    slots_[slot].holders.fetch_and(~bit(member), std::memory_order_release);
  }

  // All that a dead member had. Its number is free afterwards.
  void reap(std::uint8_t member, std::uint64_t now);
  // Orphans whose time is over. Returns how many are left.
  std::uint32_t readmit(std::uint64_t now);
  // Everything that is derived, from the slots' words.
  void repair();

  [[nodiscard]] ArenaCounts counts() const;
  // What is not as it must be with the lock free; "" if all is well. For tests and `lmkv doctor`.
  [[nodiscard]] const char* fault() const;

 private:
  static std::uint64_t bit(std::uint8_t member) { return std::uint64_t{1} << member; }

  template <class T>
  static T get(const std::atomic<T>& from) {
    return from.load(std::memory_order_relaxed);
  }
  // Release: in the order of the program, also for whoever finds the arena after a death.
  template <class T>
  static void put(std::atomic<T>& to, T value) {
    Steps::step();
    to.store(value, std::memory_order_release);
  }
  void put_word(std::uint32_t slot, const SlotWord& word) { put(slots_[slot].word, word.pack()); }

  static std::uint32_t lengths(const SlotList (&lists)[kMostArenaNodes]) {
    std::uint32_t all = 0;
    for (const SlotList& list : lists) all += get(list.length);
    return all;
  }
  [[nodiscard]] std::uint32_t node_of(std::uint32_t slot) const {
    return static_cast<std::uint32_t>(std::uint64_t{slot} * header_->node_count / count());
  }
  [[nodiscard]] SlotList& unused_list_of(std::uint32_t slot) const {
    return (word(slot).has_pages ? control_->unused : control_->bare)[node_of(slot)];
  }
  void push_back(SlotList& list, std::uint32_t slot);
  void unlink(SlotList& list, std::uint32_t slot);
  [[nodiscard]] std::optional<std::uint32_t> take_first(SlotList (&lists)[kMostArenaNodes],
                                                        std::uint32_t node);
  void own(std::uint32_t slot, std::uint8_t member, std::uint64_t now, bool is_remote);
  [[nodiscard]] std::optional<std::uint32_t> evict();

  [[nodiscard]] Shared32& bucket_of(const SlotName& name) const;
  [[nodiscard]] std::uint32_t lookup(const SlotName& name) const;
  void write_name(std::uint32_t slot, const SlotName& name);
  void add_to_index(std::uint32_t slot);
  void remove_from_index(std::uint32_t slot);
  void unname(std::uint32_t slot);
  std::uint64_t next_tick();

  const ArenaHeader* header_;
  ArenaControl* control_;
  ArenaSlot* slots_;
  Shared32* buckets_;
};

}  // namespace lmkv

#include "arena/arena_slots_impl.hpp"
