#include "arena/arena_pool.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <utility>

#include "arena/arena_lock.hpp"
#include "common/background_thread.hpp"

namespace lmkv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kBytesAhead = 256 << 20;  // pages before they are used, of all members
constexpr auto kHousekeeping = std::chrono::seconds(1);
constexpr auto kFullPause = std::chrono::seconds(10);  // the filesystem has no more room

SlotName name_without_key(const NamespaceDigest& name_space, std::uint32_t rank) {
  SlotName name;
  std::memcpy(name.namespace_words.data(), name_space.bytes.data(), NamespaceDigest::kBytes);
  name.rank = rank;
  return name;
}

}  // namespace

ArenaPool::ArenaPool(const ArenaPlace& place, std::uint64_t bytes,
                     const NamespaceDigest& name_space, std::uint32_t rank, Reach reach,
                     Device& device)
    : device_(device),
      is_remote_(reach == Reach::kRemote),
      name_(name_without_key(name_space, rank)),
      arena_(place, bytes),
      slots_(arena_.file().slots()),
      node_(static_cast<std::uint32_t>(std::max(0, device.numa_node())) %
            arena_.file().header().node_count),
      slots_ahead_(static_cast<std::uint32_t>(std::clamp<std::uint64_t>(
          kBytesAhead / place.slab_bytes, kFewestArenaSlots, slots_.count()))),
      uses_(slots_.count()),
      is_mapped_(slots_.count()) {
  const std::span<std::byte> slabs = arena_.file().slabs();
  ::madvise(slabs.data(), slabs.size(), MADV_DONTFORK);  // or a child keeps the memory
  ::madvise(slabs.data(), slabs.size(), MADV_HUGEPAGE);
  const std::uint32_t at_once = device_.pins_memory() ? slots_.count() : kFewestArenaSlots;
  while (slots_with_pages() < at_once) {
    const int failed = bring_pages();
    if (failed == 0) continue;
    if (slots_with_pages() >= kFewestArenaSlots) break;
    throw ArenaError(arena_.file().path() +
                     ": no memory: " + (failed > 0 ? std::strerror(failed) : "its lock is held"));
  }
  if (slots_with_pages() < at_once) {  // what is pinned has to be there
    throw ArenaError(arena_.file().path() + ": no memory for all of it, as a GPU needs it");
  }
  pin_error_ = device_.pin(slabs.data(), slabs.size());
  try {
    pages_.emplace(arena_.file(), house_wakes_);
    house_ = std::thread([this] { keep_house(); });
  } catch (const std::system_error& error) {
    if (pin_error_.empty()) device_.unpin(slabs.data());
    throw ArenaError(arena_.file().path() + ": no thread for it: " + error.what());
  }
}

ArenaPool::~ArenaPool() {
  assert(in_use_ == 0);
  end_threads();
  if (pin_error_.empty()) device_.unpin(arena_.file().slabs().data());
  const std::lock_guard lock(mutex_);
  if (const auto held = lock_.take(arena_.file())) give_back_kept();
}

void ArenaPool::end_threads() {
  ends_.store(true, std::memory_order_relaxed);
  house_wakes_.ring();
  if (house_.joinable()) house_.join();
}

// ---- Slabs

std::span<std::byte> ArenaPool::bytes_of(std::size_t index) const {
  return arena_.file().slab(static_cast<std::uint32_t>(index));
}

SlotName ArenaPool::name_of(const ChunkKey& key) const {
  SlotName name = name_;
  std::memcpy(name.key_words.data(), key.bytes.data(), ChunkKey::kBytes);
  return name;
}

std::optional<Slab> ArenaPool::acquire(const ChunkKey* wanted) {
  std::optional<std::uint32_t> slot;
  bool waits = false;
  {
    const std::lock_guard lock(mutex_);
    const auto held = lock_.take(arena_.file());
    if (!held) return std::nullopt;
    give_back_kept();
    const std::optional<SlotName> name = wanted ? std::optional(name_of(*wanted)) : std::nullopt;
    // Rather than a chunk that is of use, one waits for memory, while there is some to be had.
    waits = slots_.unused_with_pages() == 0 && slots_.bare() > 0 && !is_full_;
    if (!waits) {
      slot = slots_.take(arena_.number(), node_, arena_now(), name ? &*name : nullptr, is_remote_);
    }
    if (slot) {
      uses_[*slot] = {1, false};
      ++in_use_;
    }
  }
  if (waits) wants_one_now_.store(true, std::memory_order_relaxed);
  if (is_short_of_pages()) house_wakes_.ring();
  if (!slot) return std::nullopt;
  return make_slab(*slot);
}

SharedSlab ArenaPool::publish(Slab slab, const ChunkKey& key) {
  const std::size_t index = take_over(slab);
  const std::lock_guard lock(mutex_);
  const auto held = lock_.take(arena_.file());
  // Without it the chunk is nobody's but the caller's.
  if (held) {
    const auto slot = static_cast<std::uint32_t>(index);
    uses_[index].is_published = slots_.publish(arena_.number(), slot, name_of(key));
  }
  return make_shared_slab(index);
}

void ArenaPool::disclaim(const Slab& slab) {
  const std::lock_guard lock(mutex_);
  disclaimed_.push_back(static_cast<std::uint32_t>(index_of(slab)));
  if (const auto held = lock_.take(arena_.file())) give_back_kept();
}

SlabPool::Found ArenaPool::find(const ChunkKey& key) {
  const std::lock_guard lock(mutex_);
  const auto held = lock_.take(arena_.file());
  if (!held) return {};
  const auto found = slots_.find(arena_.number(), name_of(key));
  if (found.state == SlotState::kFilling) return {std::nullopt, true};
  if (found.state != SlotState::kReady) return {};
  Use& use = uses_[found.slot];
  use.is_published = true;
  if (use.handles++ == 0) ++in_use_;
  return {make_shared_slab(found.slot), false};
}

void ArenaPool::release(std::size_t index) {
  const std::lock_guard lock(mutex_);
  Use& use = uses_[index];
  if (--use.handles > 0) return;
  --in_use_;
  const auto slot = static_cast<std::uint32_t>(index);
  if (use.is_published) return slots_.release(arena_.number(), slot);
  kept_.push_back(slot);
  if (const auto held = lock_.take(arena_.file())) give_back_kept();
}

void ArenaPool::give_back_kept() {
  for (const std::uint32_t slot : disclaimed_) slots_.disclaim(slot);
  disclaimed_.clear();
  for (const std::uint32_t slot : kept_) slots_.give_back(slot);
  kept_.clear();
}

SlabCounts ArenaPool::counts() const {
  SlabCounts counts;
  counts.total = slots_.count();
  const std::lock_guard lock(mutex_);
  counts.in_use = in_use_;
  counts.free = std::min<std::size_t>(slots_.unused_with_pages(), counts.total - in_use_);
  counts.cached = counts.total - counts.free - counts.in_use;
  return counts;
}

SlabMemory ArenaPool::memory() const {
  const std::span<std::byte> slabs = arena_.file().slabs();
  return {slabs.data(), slabs.size(), arena_.file().header().slab_bytes};
}

std::string ArenaPool::info() const { return "shared: " + arena_.file().path(); }

// ---- Housekeeping

std::uint32_t ArenaPool::slots_with_pages() const { return slots_.count() - slots_.bare(); }

bool ArenaPool::is_short_of_pages() const {
  return slots_.unused_with_pages() < slots_ahead_ && slots_.bare() > 0;
}

std::optional<std::uint32_t> ArenaPool::take_bare() {
  const std::lock_guard lock(mutex_);
  const auto held = lock_.take(arena_.file());
  if (!held) return std::nullopt;
  return slots_.take_bare(arena_.number(), node_, arena_now());
}

void ArenaPool::put_back(std::uint32_t slot, int failed) {
  is_mapped_[slot] = failed == 0;
  const std::lock_guard lock(mutex_);
  kept_.push_back(slot);
  // Without it the slot is given back later, and as one without pages: it is asked for them again.
  if (const auto held = lock_.take(arena_.file())) {
    if (failed == 0) slots_.set_pages(slot);
    give_back_kept();
  }
}

int ArenaPool::bring_pages() {
  const std::optional<std::uint32_t> slot = take_bare();
  if (!slot) return -1;
  const int failed = arena_.file().give_pages(*slot);
  put_back(*slot, failed);
  return failed;
}

std::optional<std::uint32_t> ArenaPool::next_to_map() {
  for (std::uint32_t i = 0; i < slots_.count(); ++i) {
    const std::uint32_t slot = mapped_to_;
    mapped_to_ = (mapped_to_ + 1) % slots_.count();
    if (!is_mapped_[slot] && slots_.word(slot).has_pages) return slot;
  }
  return std::nullopt;
}

void ArenaPool::keep_house() {
  become_background_thread("lmkv-arena");
  Clock::time_point next = Clock::now() + kHousekeeping;
  while (!ends_.load(std::memory_order_relaxed)) {
    if (Clock::now() >= next) {
      next = Clock::now() + kHousekeeping;
      bury_the_dead();
    }
    if (const auto outcome = pages_->outcome()) note(*outcome);
    order_pages();
    house_wakes_.wait_until(next);
  }
  pages_->stop();
  if (const auto outcome = pages_->outcome()) note(*outcome);
}

void ArenaPool::bury_the_dead() {
  const std::lock_guard lock(mutex_);
  const auto held = lock_.take(arena_.file());
  if (!held) return;
  give_back_kept();
  bury_dead(arena_.file(), arena_.number(), arena_now());
  slots_.readmit(arena_now());
}

void ArenaPool::order_pages() {
  const bool may_grow = Clock::now() >= may_grow_ && is_short_of_pages();
  // What runs when nothing else wants to may take long; somebody waits for this one.
  if (wants_one_now_.exchange(false, std::memory_order_relaxed) && may_grow) {
    note_growth(bring_pages());
  }
  if (pages_->is_busy()) return;
  if (may_grow) {
    if (const auto slot = take_bare()) return pages_->give(*slot);
  }
  // What goes away meanwhile gets its memory anew, as for any slot that has none.
  if (const auto slot = next_to_map()) {
    is_mapped_[*slot] = true;
    pages_->map(*slot);
  }
}

void ArenaPool::note(const ArenaPages::Outcome& outcome) {
  if (outcome.order != ArenaPages::Order::kGive) return;
  put_back(outcome.slot, outcome.failed);
  if (outcome.failed != ECANCELED) note_growth(outcome.failed);
}

void ArenaPool::note_growth(int failed) {
  is_full_ = failed > 0;
  if (failed > 0) may_grow_ = Clock::now() + kFullPause;
}

}  // namespace lmkv
