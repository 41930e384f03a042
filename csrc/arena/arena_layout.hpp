// What lies in an arena: host memory that all engines of a node map, for chunks
// (docs/node-memory.md).
//
//   0              ArenaHeader                what must match, written once before others see it
//   4096           ArenaControl               lock, counters, members
//   slots_offset   ArenaSlot[slot_count]      what each slab is used for
//   buckets_offset atomic<u32>[bucket_count]  where a key's slots begin (derived)
//   slabs_offset   slot_count * slab_bytes    at a multiple of 2 MiB, for huge pages
//
// Positions are indices and offsets: every process maps it elsewhere. What changes is atomic and
// lock-free, so that a process that is killed leaves each of these whole. What is marked "derived"
// follows from the slots' states and is made anew when a process died in the middle of a change.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "common/types.hpp"

namespace lmkv {

inline constexpr std::uint32_t kArenaLayout = 1;       // of all below; with another, nobody joins
inline constexpr std::size_t kArenaMembers = 64;       // engines (ranks) that use one at a time
inline constexpr std::uint32_t kFewestArenaSlots = 2;  // one for a load and one for a store
inline constexpr std::uint32_t kNoSlot = 0xffff'ffff;
inline constexpr std::size_t kMostArenaNodes = 8;  // NUMA nodes that are told apart

using Shared32 = std::atomic<std::uint32_t>;
using Shared64 = std::atomic<std::uint64_t>;
static_assert(Shared32::is_always_lock_free && Shared64::is_always_lock_free);

struct ArenaHeader {
  std::array<char, 8> magic;
  std::uint32_t layout;
  std::uint32_t control_bytes;  // sizeof(ArenaControl)
  std::uint64_t total_bytes;
  std::uint64_t slab_bytes;
  std::uint32_t slot_count;
  std::uint32_t bucket_count;  // a power of two
  std::uint32_t node_count;    // NUMA nodes that the slots are spread over, in equal runs
  std::uint32_t unused;
  std::uint64_t slots_offset;
  std::uint64_t buckets_offset;
  std::uint64_t slabs_offset;
};
inline constexpr std::array<char, 8> kArenaMagic = {'l', 'm', 'k', 'v', 'a', 'r', 'e', 'n'};

// A process (one rank's engine) that uses slots. It has a lock on a byte of the file for as long as
// it lives (arena/arena_members.hpp); the numbers are for people.
struct ArenaMember {
  Shared32 joined;  // 0 or 1
  Shared32 pid;     // in its own PID namespace
  Shared64 start_time;
};

// Where slots wait for something, by index. Derived.
struct SlotList {
  Shared32 first;
  Shared32 last;
  Shared32 length;
};

struct ArenaControl {
  alignas(64) Shared64 lock;         // arena/arena_lock.hpp; of all but ArenaSlot::holders
  alignas(64) Shared32 retired;      // 1: taken off the directory, for nobody to join any more
  Shared64 tick;                     // of ArenaSlot::used
  Shared64 repairs;                  // how often a process had died in the middle of a change
  SlotList unused[kMostArenaNodes];  // by NUMA node; the file has memory for these,
  SlotList bare[kMostArenaNodes];    // and none for these
  SlotList cached;                   // kReady, least recently used first
  Shared32 orphans;                  // slots; derived
  ArenaMember members[kArenaMembers];
};

enum class SlotState : std::uint8_t {
  kFree = 0,
  kFilling = 1,   // of one member's, which alone may touch the slab
  kReady = 2,     // a whole chunk, which no one may write to; holders read it
  kOrphaned = 3,  // its filler died, and disk or GPU may write to it for a while yet
};

// The one word that says what a slot is: a change of it is what takes effect.
struct SlotWord {
  SlotState state = SlotState::kFree;
  bool named = false;      // filling: `name` says with what, and it can be waited for
  std::uint8_t owner = 0;  // filling: the member
  bool is_remote = false;  // filling, orphaned: by a disk across a network, which may take longer
  bool has_pages = false;  // the file has memory for it: touching it raises no SIGBUS

  [[nodiscard]] std::uint64_t pack() const {
    return static_cast<std::uint64_t>(state) | static_cast<std::uint64_t>(named) << 8 |
           static_cast<std::uint64_t>(owner) << 16 | static_cast<std::uint64_t>(has_pages) << 24 |
           static_cast<std::uint64_t>(is_remote) << 25;
  }
  [[nodiscard]] static SlotWord unpack(std::uint64_t word) {
    return {static_cast<SlotState>(word & 3), (word >> 8 & 1) != 0,
            static_cast<std::uint8_t>(word >> 16 & 0xff), (word >> 25 & 1) != 0,
            (word >> 24 & 1) != 0};
  }
};

// What a chunk in the arena is found by: engines of other models and ranks use it too.
struct SlotName {
  std::array<std::uint64_t, 4> namespace_words{};
  std::array<std::uint64_t, 4> key_words{};
  std::uint32_t rank = 0;

  friend bool operator==(const SlotName&, const SlotName&) = default;
};

struct alignas(64) ArenaSlot {
  Shared64 word;     // SlotWord
  Shared64 holders;  // a bit for each member that reads it: set with the lock, cleared without
  Shared64 since;    // filling, orphaned: seconds of CLOCK_MONOTONIC
  Shared64 used;     // the tick of its last use
  Shared64 name_space[4];
  Shared64 key[4];
  Shared32 rank;
  Shared32 before;  // in its list; derived, as the next two
  Shared32 behind;
  Shared32 chain;  // the next of its bucket
};
static_assert(sizeof(ArenaSlot) == 128);
static_assert(sizeof(ArenaHeader) <= kPageBytes);

}  // namespace lmkv
