#include "arena/arena_members.hpp"

#include <unistd.h>

#include <chrono>
#include <ctime>
#include <fstream>
#include <limits>
#include <string>

#include "arena/arena_lock.hpp"

namespace lmkv {
namespace {

// How long the arena's lock is waited for, at the beginning and at the end.
constexpr auto kWelcome = std::chrono::seconds(5);
constexpr auto kFarewell = std::chrono::milliseconds(100);

// Clock ticks after the boot: field 22 of proc_pid_stat(5). The name before it may have blanks.
std::uint64_t own_start_time() {
  std::ifstream file("/proc/self/stat");
  file.ignore(std::numeric_limits<std::streamsize>::max(), ')');
  std::string skipped;
  for (int field = 3; field < 22; ++field) file >> skipped;
  std::uint64_t ticks = 0;
  file >> ticks;
  return ticks;
}

// Its number; empty if the arena was taken away just now.
std::optional<std::uint8_t> join(const ArenaFile& file) {
  ArenaSlots<> slots = file.slots();
  const auto lock = ArenaLock::take(file, kWelcome);
  if (!lock) throw ArenaError(file.path() + ": a process that is stopped has its lock");
  ArenaControl& control = slots.control();
  if (control.retired.load(std::memory_order_acquire) != 0) return std::nullopt;
  const std::uint64_t start_time = own_start_time();
  for (std::size_t i = 0; i < kArenaMembers; ++i) {
    const auto number = static_cast<std::uint8_t>(i);
    if (!try_lock_byte(file.fd(), number)) continue;
    ArenaMember& member = control.members[number];
    if (member.joined.load(std::memory_order_relaxed) != 0) slots.reap(number, arena_now());
    member.pid.store(static_cast<std::uint32_t>(::getpid()), std::memory_order_relaxed);
    member.start_time.store(start_time, std::memory_order_relaxed);
    member.joined.store(1, std::memory_order_release);
    return number;
  }
  throw ArenaError(file.path() + ": " + std::to_string(kArenaMembers) + " engines use it already");
}

}  // namespace

std::uint64_t arena_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec);
}

bool is_alive_elsewhere(const ArenaFile& file, std::uint8_t member) {
  return is_locked_elsewhere(file.fd(), member);
}

JoinedArena::JoinedArena(const ArenaPlace& place, std::uint64_t bytes)
    : JoinedArena(take_place(place, bytes)) {}

JoinedArena::JoinedArena(Place place)
    : file_(std::move(place.file)), number_(place.number), pid_(::getpid()) {}

JoinedArena::~JoinedArena() {
  // A forked child's copy says nothing of its parent.
  if (!file_.is_open() || ::getpid() != pid_) return;
  ArenaSlots<> slots = file_.slots();
  // Without it the others find out by themselves.
  if (const auto lock = ArenaLock::take(file_, kFarewell)) slots.reap(number_, arena_now());
}

JoinedArena::Place JoinedArena::take_place(const ArenaPlace& place, std::uint64_t bytes) {
  for (;;) {
    ArenaFile file = ArenaFile::open_or_create(place, bytes);
    if (const auto number = join(file)) return {std::move(file), *number};
  }
}

void bury_dead(const ArenaFile& file, std::optional<std::uint8_t> self, std::uint64_t now) {
  ArenaSlots<> slots = file.slots();
  for (std::size_t i = 0; i < kArenaMembers; ++i) {
    const auto number = static_cast<std::uint8_t>(i);
    if (number == self) continue;
    if (slots.control().members[number].joined.load(std::memory_order_acquire) == 0) continue;
    if (!is_alive_elsewhere(file, number)) slots.reap(number, now);
  }
}

}  // namespace lmkv
