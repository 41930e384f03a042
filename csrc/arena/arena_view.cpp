#include "arena/arena_view.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "arena/arena_lock.hpp"
#include "arena/arena_members.hpp"

namespace lmkv {
namespace {

// A scheduler's whole step has a millisecond for all its lookups.
constexpr auto kPatience = std::chrono::microseconds(200);
constexpr auto kPatienceOfPeople = std::chrono::seconds(1);

ArenaFile open_or_throw(const ArenaPlace& place) {
  std::optional<ArenaFile> file = ArenaFile::open_existing(place);
  if (!file) throw ArenaError(place.path() + ": is not there");
  return std::move(*file);
}

ArenaError held(const ArenaFile& file) {
  return ArenaError(file.path() + ": a process that is stopped has its lock");
}

}  // namespace

ArenaView::ArenaView(const ArenaPlace& place, const NamespaceDigest& name_space,
                     std::uint32_t ranks)
    : file_(open_or_throw(place)), slots_(file_.slots()), lock_(kPatience), ranks_(ranks) {
  std::memcpy(name_.namespace_words.data(), name_space.bytes.data(), NamespaceDigest::kBytes);
}

bool ArenaView::has(const ChunkKey& key) {
  std::memcpy(name_.key_words.data(), key.bytes.data(), ChunkKey::kBytes);
  for (name_.rank = 0; name_.rank < ranks_; ++name_.rank) {
    if (!slots_.has(name_)) return false;
  }
  return true;
}

std::size_t ArenaView::leading(const std::vector<ChunkKey>& keys) {
  const auto lock = lock_.take(file_);
  if (!lock) return 0;
  const auto end = std::ranges::find_if_not(keys, [this](const ChunkKey& key) { return has(key); });
  return static_cast<std::size_t>(end - keys.begin());
}

std::vector<bool> ArenaView::present(const std::vector<ChunkKey>& keys) {
  std::vector<bool> found(keys.size());
  const auto lock = lock_.take(file_);
  if (!lock) return found;
  std::transform(keys.begin(), keys.end(), found.begin(),
                 [this](const ChunkKey& key) { return has(key); });
  return found;
}

std::optional<ArenaReport> report_arena(const ArenaPlace& place, bool thorough) {
  const std::optional<ArenaFile> file = ArenaFile::open_existing(place);
  if (!file) return std::nullopt;
  ArenaSlots<> slots = file->slots();
  ArenaReport report;
  report.path = file->path();
  report.slab_bytes = file->header().slab_bytes;
  report.slots = slots.counts();
  report.bytes = report.slots.total * report.slab_bytes;
  report.bytes_taken = (report.slots.total - report.slots.bare) * report.slab_bytes;
  report.repairs = slots.control().repairs.load(std::memory_order_relaxed);
  const auto lock = ArenaLock::take(*file, kPatienceOfPeople);
  if (!lock) throw held(*file);
  if (thorough) report.fault = slots.fault();
  for (std::size_t i = 0; i < kArenaMembers; ++i) {
    const ArenaMember& member = slots.control().members[i];
    if (member.joined.load(std::memory_order_acquire) == 0) continue;
    const bool is_alive = is_alive_elsewhere(*file, static_cast<std::uint8_t>(i));
    report.members.push_back({member.pid.load(std::memory_order_relaxed), is_alive});
  }
  return report;
}

std::uint64_t remove_arena(const ArenaPlace& place) {
  const ArenaFile file = open_or_throw(place);
  ArenaSlots<> slots = file.slots();
  const auto lock = ArenaLock::take(file, kPatienceOfPeople);
  if (!lock) throw held(file);
  if (slots.control().retired.load(std::memory_order_acquire) != 0) return 0;  // by another
  for (std::size_t i = 0; i < kArenaMembers; ++i) {
    if (slots.control().members[i].joined.load(std::memory_order_acquire) == 0) continue;
    if (is_alive_elsewhere(file, static_cast<std::uint8_t>(i))) {
      throw ArenaError(file.path() + ": engines use it");
    }
  }
  // In this order: one that opened it before and joins in between has an arena for itself.
  if (::unlink(file.path().c_str()) != 0) {
    throw ArenaError(file.path() + ": " + std::strerror(errno));
  }
  slots.control().retired.store(1, std::memory_order_release);
  return (slots.count() - slots.bare()) * file.header().slab_bytes;
}

}  // namespace lmkv
