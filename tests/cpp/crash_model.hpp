// The trees that a disk may hold after a crash: rebuilt from what was done to it.
//
// What the machine had not begun by then did not happen. Of the rest, what is on the disk is
// - when the process died and the kernel went on: all that was over, and of what was under way any
//   part;
// - when the power failed: what a sync covered (the file's data and size, if they were over when it
//   began), and of everything else any part. A caller that keeps names, sizes and times up to some
//   step and none behind it has a journal such as ext4's; one that keeps any of them has the least
//   that POSIX promises. The one rule that holds for all of them: a name needs its directory.
// Data goes by sectors, sizes and names go by themselves: a file may have its new name or its size
// and none of its bytes.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "disk_image.hpp"
#include "recording_engine.hpp"

namespace lmkv::test {

inline constexpr std::size_t kSector = 512;

// What became of that which the rules leave open. Numbers of steps are indices in the trace.
struct Survival {
  std::size_t moment = 0;     // of the crash
  bool process_only = false;  // the kernel went on

  // Whether a step's change of names, sizes or times is there; of a rename, its new name.
  std::function<bool(std::size_t step)> keeps;
  // Whether a rename's old name is gone; as keeps() if empty.
  std::function<bool(std::size_t step)> takes_old_name;
  // Whether a sector of a write is there; `offset` is its place in the file.
  std::function<bool(std::size_t step, std::size_t offset)> keeps_sector;
  // What a file's sectors hold before they are written. Zeros if empty.
  std::function<void(int file, std::span<std::byte> bytes)> fill;
  // Another size for a file whose own is not synced. May be empty.
  std::function<std::size_t(int file, std::size_t size)> resize;
};

// `before`: what was there when recording began, all of it on the disk for certain.
[[nodiscard]] DiskImage rebuild(const Trace& trace, const DiskImage& before,
                                const Survival& survival);

}  // namespace lmkv::test
