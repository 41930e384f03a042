// The slots' protocol: what each call does, and, in every order of calls by two processes that may
// be killed before any write, that nobody ever reads what was not written whole.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#include "arena_memory.hpp"

namespace lmkv {
namespace {

using test::ArenaMemory;
using test::name_of;

// ---- What each call does

class ArenaSlotsTest : public ::testing::Test {
 protected:
  ArenaSlotsTest() {
    for (std::uint32_t slot = 0; slot < 4; ++slot) give_pages();
  }
  void give_pages() {
    const auto slot = slots.take_bare(0, 0, 0);
    slots.set_pages(*slot);
    slots.give_back(*slot);
  }
  std::uint32_t publish(std::uint8_t member, std::uint64_t key) {
    const auto slot = slots.take(member, 0, 0);
    EXPECT_TRUE(slots.publish(member, *slot, name_of(key)));
    return *slot;
  }
  ~ArenaSlotsTest() override { EXPECT_STREQ(slots.fault(), ""); }

  ArenaMemory memory{4};
  ArenaSlots<> slots = memory.view();
};

TEST_F(ArenaSlotsTest, WhatOneMemberPublishedAnotherFinds) {
  const std::uint32_t slot = publish(1, 42);
  const auto found = slots.find(2, name_of(42));
  EXPECT_EQ(found.state, SlotState::kReady);
  EXPECT_EQ(found.slot, slot);
  EXPECT_EQ(slots.holders(slot), 0b110U);
}

TEST_F(ArenaSlotsTest, NamesOfOtherRanksAndNamespacesAreOthers) {
  publish(1, 42);
  EXPECT_EQ(slots.find(2, name_of(42, 1)).state, SlotState::kFree);
  SlotName other = name_of(42);
  other.namespace_words[3] = 5;
  EXPECT_EQ(slots.find(2, other).state, SlotState::kFree);
}

TEST_F(ArenaSlotsTest, WhatIsReadIsNotTaken) {
  for (std::uint64_t key = 0; key < 4; ++key) publish(1, key);
  EXPECT_FALSE(slots.take(2, 0, 0));
  slots.release(1, slots.find(1, name_of(2)).slot);
  EXPECT_TRUE(slots.take(2, 0, 0));
  EXPECT_FALSE(slots.has(name_of(2)));
  EXPECT_TRUE(slots.has(name_of(1)));
}

TEST_F(ArenaSlotsTest, TheLeastRecentlyUsedIsTakenFirst) {
  for (std::uint64_t key = 0; key < 4; ++key) slots.release(1, publish(1, key));
  slots.release(2, slots.find(2, name_of(0)).slot);
  EXPECT_TRUE(slots.take(2, 0, 0));
  EXPECT_TRUE(slots.has(name_of(0)));
  EXPECT_FALSE(slots.has(name_of(1)));
}

TEST_F(ArenaSlotsTest, WhatIsOnItsWayIsSaidToBe) {
  const SlotName name = name_of(42);
  const auto slot = slots.take(1, 0, 17, &name);
  const auto found = slots.find(2, name);
  EXPECT_EQ(found.state, SlotState::kFilling);
  EXPECT_EQ(found.since, 17U);
  EXPECT_FALSE(slots.has(name));
  EXPECT_TRUE(slots.publish(1, *slot, name));
  EXPECT_EQ(slots.find(2, name).state, SlotState::kReady);
}

TEST_F(ArenaSlotsTest, OfTwoFillersTheFirstThatIsDoneIsFound) {
  const SlotName name = name_of(42);
  const auto first = slots.take(1, 0, 0, &name);
  const auto second = slots.take(2, 0, 0, &name);
  EXPECT_TRUE(slots.publish(2, *second, name));
  EXPECT_FALSE(slots.publish(1, *first, name));
  EXPECT_EQ(slots.find(1, name).slot, *second);
  slots.give_back(*first);
}

TEST_F(ArenaSlotsTest, AnOrphanIsUsedAgainOnceItsTimeIsOver) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(slots.take(1, 0, 0));
  slots.reap(1, 1000);
  EXPECT_EQ(slots.counts().orphaned, 4U);
  EXPECT_FALSE(slots.take(2, 0, 1000));
  EXPECT_EQ(slots.readmit(1000 + kOrphanSeconds - 1), 4U);
  EXPECT_FALSE(slots.take(2, 0, 1000));
  EXPECT_EQ(slots.readmit(1000 + kOrphanSeconds), 0U);
  EXPECT_TRUE(slots.take(2, 0, 1000));
}

TEST_F(ArenaSlotsTest, WhatWasReadAcrossANetworkWaitsMuchLonger) {
  ASSERT_TRUE(slots.take(1, 0, 0, nullptr, true));
  slots.reap(1, 0);
  EXPECT_EQ(slots.readmit(kRemoteOrphanSeconds - 1), 1U);
  EXPECT_EQ(slots.readmit(kRemoteOrphanSeconds), 0U);
}

TEST_F(ArenaSlotsTest, AClockThatIsBehindMakesAnOrphanWaitItsWholeTime) {
  ASSERT_TRUE(slots.take(1, 0, 0));
  slots.reap(1, 1'000'000);
  EXPECT_EQ(slots.readmit(500), 1U);
  EXPECT_EQ(slots.readmit(500 + kOrphanSeconds), 0U);
}

TEST(ArenaSlots, SlotsWithoutPagesAreOnlyTakenToGetSome) {
  ArenaMemory memory(2);
  ArenaSlots<> slots = memory.view();
  EXPECT_FALSE(slots.take(0, 0, 0));
  const auto bare = slots.take_bare(0, 0, 0);
  slots.set_pages(*bare);
  slots.give_back(*bare);
  EXPECT_EQ(slots.counts().bare, 1U);
  EXPECT_EQ(slots.take(0, 0, 0), bare);
  EXPECT_FALSE(slots.take(0, 0, 0));
}

TEST(ArenaSlots, SlotsOfOnesOwnNumaNodeAreTakenFirst) {
  ArenaMemory memory(4, 2);
  ArenaSlots<> slots = memory.view();
  for (int i = 0; i < 4; ++i) {
    const auto bare = slots.take_bare(0, 0, 0);
    slots.set_pages(*bare);
    slots.give_back(*bare);
  }
  std::set<std::uint32_t> near;
  for (int i = 0; i < 2; ++i) near.insert(*slots.take(0, 1, 0));
  EXPECT_EQ(near, (std::set<std::uint32_t>{2, 3}));
  EXPECT_TRUE(slots.take(0, 1, 0));  // a far one is better than none
}

// ---- Every order of calls, and a death before every write

struct Killed {};

// Kills the caller, or does something else, before its n-th write.
struct Interrupted {
  static thread_local int writes_left;
  static thread_local const std::function<void()>* then;
  static void step() {
    if (writes_left >= 0 && writes_left-- == 0) (*then)();
  }
};
thread_local int Interrupted::writes_left = -1;
thread_local const std::function<void()>* Interrupted::then = nullptr;

// All of them; under a sanitizer, which is slow and finds other things, some.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kMostWorlds = 4000;
#else
constexpr std::size_t kMostWorlds = std::numeric_limits<std::size_t>::max();
#endif

constexpr std::uint8_t kMembers = 2;
constexpr std::uint64_t kKeys = 2;
constexpr std::size_t kMostHandles = 2;
constexpr std::uint64_t kGarbage = 99;  // what is in a slab that is no chunk

// What a process has in hand.
struct Handle {
  // kFilled: disk and device have nothing under way for it any more.
  enum Kind : std::uint8_t { kFilling, kFilled, kReading } kind;
  std::uint32_t slot;
  std::uint64_t key;  // of what it reads, or will publish

  auto operator<=>(const Handle&) const = default;
};

// All processes, the arena, and what really lies in the slabs.
struct World {
  World(std::uint32_t slots, std::uint32_t bare)
      : arena(slots), contents(slots, kGarbage), writable(slots) {
    auto view = arena.view();
    for (std::uint32_t i = bare; i < slots; ++i) {
      const auto slot = view.take_bare(0, 0, 0);
      view.set_pages(*slot);
      view.give_back(*slot);
    }
    for (std::uint8_t member = 0; member < kMembers; ++member) join(member);
  }

  void join(std::uint8_t member) {
    arena.view().control().members[member].joined = 1;
    is_alive[member] = true;
  }
  void kill(std::uint8_t member) {
    is_alive[member] = false;
    for (const Handle& handle : handles[member]) {
      if (handle.kind == Handle::kFilling) writable[handle.slot] = true;
    }
    handles[member].clear();
  }

  // Worlds that only differ in what nobody reads become one: numbers that are compared and not
  // counted, names that are none, and what is derived where a repair is due.
  void normalise() {
    auto view = arena.view();
    std::set<std::uint64_t> used;
    for (std::uint32_t slot = 0; slot < view.count(); ++slot) {
      if (view.word(slot).state == SlotState::kReady) used.insert(arena.slot(slot).used);
    }
    for (std::uint32_t slot = 0; slot < view.count(); ++slot) {
      ArenaSlot& each = arena.slot(slot);
      const SlotWord word = view.word(slot);
      const bool is_ready = word.state == SlotState::kReady;
      each.since = 0;
      each.used = is_ready ? 1 + std::distance(used.begin(), used.find(each.used.load())) : 0;
      if (is_broken || (!is_ready && word.state != SlotState::kFree)) {
        each.before = each.behind = kNoSlot;
      }
      if (is_broken || (!is_ready && !word.named)) each.chain = kNoSlot;
      if (!is_ready && !word.named) arena.set_name(slot, name_of(0));  // what must not be read
    }
    ArenaControl& control = view.control();
    control.tick = used.size();
    control.repairs = 0;
    if (is_broken) {
      for (SlotList* list : {&control.unused[0], &control.bare[0], &control.cached}) {
        list->first = list->last = kNoSlot;
        list->length = 0;
      }
      control.orphans = 0;
      for (std::uint32_t bucket = 0; bucket < ArenaMemory::kBuckets; ++bucket) {
        arena.bucket(bucket) = kNoSlot;
      }
    }
    for (auto& held : handles) std::ranges::sort(held);
  }

  [[nodiscard]] std::string key() const {
    const auto& words = arena.words();
    std::string text(reinterpret_cast<const char*>(words.data()), words.size() * sizeof words[0]);
    text += is_broken ? 'b' : 'w';
    for (std::uint8_t member = 0; member < kMembers; ++member) {
      text += is_alive[member] ? 'a' : 'd';
      for (const Handle& handle : handles[member]) {
        text += static_cast<char>('0' + handle.kind);
        text += static_cast<char>('0' + handle.slot);
        text += static_cast<char>('0' + handle.key);
      }
    }
    for (const std::uint64_t content : contents) text += static_cast<char>(content);
    for (const bool each : writable) text += each ? '!' : '.';
    return text;
  }

  ArenaMemory arena;
  std::vector<std::uint64_t> contents;  // by slot: a key, or garbage
  std::vector<bool> writable;           // a dead process's disk may still write there
  bool is_alive[kMembers] = {};
  bool is_broken = false;  // a process died with the lock: whoever takes it next repairs first
  std::vector<Handle> handles[kMembers];
};

// One call of one process.
struct Call {
  std::string what;
  std::uint8_t member;
  bool with_lock;
  std::function<void(World&, ArenaSlots<Interrupted>)> run;
};

class Explorer {
 public:
  explicit Explorer(World start) { add(std::move(start)); }

  // Returns how many worlds there are, or that there are so many.
  std::size_t run(std::size_t most) {
    while (!open_.empty() && seen_.size() < most && !::testing::Test::HasFailure()) {
      const World world = std::move(open_.back());
      open_.pop_back();
      for (const Call& call : calls(world)) try_all(world, call);
    }
    return seen_.size();
  }

 private:
  void add(World world) {
    world.normalise();
    if (seen_.insert(world.key()).second) open_.push_back(std::move(world));
  }

  static std::vector<Call> calls(const World& world) {
    std::vector<Call> all;
    for (std::uint8_t member = 0; member < kMembers; ++member) {
      if (!world.is_alive[member]) continue;
      add_calls_of(world, member, all);
    }
    // The disk, after its process died.
    for (std::uint32_t slot = 0; slot < world.contents.size(); ++slot) {
      if (!world.writable[slot] || world.contents[slot] == kGarbage) continue;
      all.push_back({"the disk writes", 0, false,
                     [slot](World& w, ArenaSlots<Interrupted>) { w.contents[slot] = kGarbage; }});
    }
    return all;
  }

  static void add_calls_of(const World& world, std::uint8_t m, std::vector<Call>& all) {
    using Slots = ArenaSlots<Interrupted>;
    all.push_back({"dies", m, false, [m](World& w, Slots) { w.kill(m); }});
    for (std::size_t i = 0; i < world.handles[m].size(); ++i) add_handle_calls(world, m, i, all);
    if (world.handles[m].size() < kMostHandles) {
      for (std::uint64_t key = 0; key < kKeys; ++key) {
        for (const bool named : {false, true}) {
          all.push_back({"take", m, true, [=](World& w, Slots slots) {
                           const SlotName name = name_of(key);
                           const auto slot = slots.take(m, 0, 0, named ? &name : nullptr);
                           if (!slot) return;
                           EXPECT_TRUE(slots.word(*slot).has_pages);
                           w.contents[*slot] = kGarbage;
                           w.handles[m].push_back({Handle::kFilling, *slot, key});
                         }});
        }
        all.push_back({"find", m, true, [=](World& w, Slots slots) {
                         const auto found = slots.find(m, name_of(key));
                         if (found.state != SlotState::kReady) return;
                         EXPECT_EQ(w.contents[found.slot], key) << "a wrong chunk was found";
                         const Handle handle{Handle::kReading, found.slot, key};
                         // A process counts by itself how often it holds a slot.
                         if (std::ranges::count(w.handles[m], handle) == 0) {
                           w.handles[m].push_back(handle);
                         }
                       }});
      }
      all.push_back({"get pages", m, true, [m](World&, Slots slots) {
                       const auto slot = slots.take_bare(m, 0, 0);
                       if (!slot) return;
                       slots.set_pages(*slot);
                       slots.give_back(*slot);
                     }});
    }
    for (std::uint8_t dead = 0; dead < kMembers; ++dead) {
      if (world.is_alive[dead]) continue;
      all.push_back({"bury", m, true, [dead](World& w, Slots slots) {
                       if (slots.control().members[dead].joined != 0) {
                         slots.reap(dead, 0);
                       } else {
                         w.join(dead);
                       }
                     }});
    }
    all.push_back({"a minute passes", m, true, [](World& w, Slots slots) {
                     for (std::uint32_t slot = 0; slot < slots.count(); ++slot) {
                       // What a dead process had under way, and only then, is over.
                       if (slots.word(slot).state == SlotState::kOrphaned) w.writable[slot] = false;
                     }
                     slots.readmit(kOrphanSeconds);
                   }});
  }

  static void add_handle_calls(const World& world, std::uint8_t m, std::size_t i,
                               std::vector<Call>& all) {
    using Slots = ArenaSlots<Interrupted>;
    const Handle handle = world.handles[m][i];
    Handle filled = handle;
    filled.kind = Handle::kFilled;
    const auto drop = [m, handle](World& w) { std::erase(w.handles[m], handle); };
    if (handle.kind == Handle::kReading) {
      all.push_back({"release", m, false, [=](World& w, Slots slots) {
                       slots.release(m, handle.slot);
                       drop(w);
                     }});
      return;
    }
    if (handle.kind == Handle::kFilling) {
      all.push_back({"filled", m, false, [=](World& w, Slots) {
                       w.contents[handle.slot] = handle.key;
                       drop(w);
                       w.handles[m].push_back(filled);
                     }});
      return;
    }
    all.push_back({"give back", m, true, [=](World& w, Slots slots) {
                     slots.give_back(handle.slot);
                     drop(w);
                   }});
    all.push_back({"publish", m, true, [=](World& w, Slots slots) {
                     if (!slots.publish(m, handle.slot, name_of(handle.key))) return;
                     drop(w);
                     w.handles[m].push_back({Handle::kReading, handle.slot, handle.key});
                   }});
  }

  // To its end; with a death before each of its writes; and with another's release there.
  void try_all(const World& before, const Call& call) {
    for (int writes = 0;; ++writes) {
      World after = before;
      const std::function<void()> die = [] { throw Killed{}; };
      if (run_until(after, call, writes, die)) {
        check(after, call);
        add(std::move(after));
        break;
      }
      after.is_broken = after.is_broken || call.with_lock;
      after.kill(call.member);
      check(after, call);
      add(std::move(after));
    }
    if (!call.with_lock) return;
    for (std::uint8_t other = 0; other < kMembers; ++other) {
      if (other == call.member) continue;
      for (const Handle& handle : before.handles[other]) {
        if (handle.kind == Handle::kReading) release_within(before, call, other, handle);
      }
    }
  }

  void release_within(const World& before, const Call& call, std::uint8_t other,
                      const Handle& handle) {
    for (int writes = 0;; ++writes) {
      World after = before;
      bool is_released = false;
      const std::function<void()> release = [&] {
        after.arena.view().release(other, handle.slot);
        std::erase(after.handles[other], handle);
        is_released = true;
      };
      run_until(after, call, writes, release);
      if (!is_released) return;
      check(after, call);
      add(std::move(after));
    }
  }

  // False if the caller died.
  static bool run_until(World& world, const Call& call, int writes,
                        const std::function<void()>& then) {
    auto slots = world.arena.view<Interrupted>();
    Interrupted::then = &then;
    Interrupted::writes_left = writes;
    bool lives = true;
    try {
      if (world.is_broken && call.with_lock) {
        slots.repair();
        world.is_broken = false;
      }
      call.run(world, slots);
    } catch (const Killed&) {
      lives = false;
    }
    Interrupted::writes_left = -1;
    return lives;
  }

  static void check(World& world, const Call& call) {
    auto slots = world.arena.view();
    EXPECT_STREQ(world.is_broken ? "" : slots.fault(), "") << "after " << call.what;
    for (std::uint8_t member = 0; member < kMembers; ++member) {
      for (const Handle& handle : world.handles[member]) {
        const SlotWord word = slots.word(handle.slot);
        if (handle.kind != Handle::kReading) {
          EXPECT_TRUE(word.state == SlotState::kFilling && word.owner == member) << call.what;
        } else {
          EXPECT_EQ(word.state, SlotState::kReady) << call.what;
          EXPECT_EQ(world.contents[handle.slot], handle.key) << call.what;
        }
      }
    }
    for (std::uint32_t slot = 0; slot < slots.count(); ++slot) {
      if (!world.writable[slot]) continue;
      // What a dead process's disk writes to is nobody's.
      const SlotWord word = slots.word(slot);
      const bool is_kept = word.state == SlotState::kOrphaned ||
                           (word.state == SlotState::kFilling && !world.is_alive[word.owner]);
      EXPECT_TRUE(is_kept) << "after " << call.what;
    }
  }

  std::vector<World> open_;
  std::unordered_set<std::string> seen_;
};

TEST(ArenaModel, NoOrderOfCallsAndDeathsLetsAnybodyReadWhatIsNotWhole) {
  const std::size_t worlds = Explorer(World(2, 2)).run(kMostWorlds);
  std::printf("%zu worlds\n", worlds);
  EXPECT_GE(worlds, std::min<std::size_t>(kMostWorlds, 26'484));
}

}  // namespace
}  // namespace lmkv
