// The file of an arena: made, found, checked and mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>

#include "arena/arena_lock.hpp"
#include "arena/arena_slots.hpp"
#include "common/access.hpp"
#include "common/unique_fd.hpp"

namespace lmkv {

// An arena that cannot be used: engines have host memory of their own then.
class ArenaError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where an arena is and what it is like. Engines whose slabs have another size have another one.
struct ArenaPlace {
  std::string directory;  // on tmpfs or hugetlbfs
  std::size_t slab_bytes = 0;
  Access access = Access::kPrivate;

  // "<directory>/lmkv-<user>-<slab bytes>.arena", with "g<group>" for the user where a group
  // shares.
  [[nodiscard]] std::string path() const;
};

// Maps it, and has a seat of its own. `fd` is this object's own open file description: locks on it
// are its alone.
class ArenaFile {
 public:
  // The one that is there, whatever its size; or a new one of about `bytes`. Throws ArenaError with
  // a reason for people: no tmpfs, no room, somebody else's file, another layout.
  [[nodiscard]] static ArenaFile open_or_create(const ArenaPlace& place, std::uint64_t bytes);
  // Empty if there is none. Throws ArenaError for what is no arena of ours.
  [[nodiscard]] static std::optional<ArenaFile> open_existing(const ArenaPlace& place);
  ArenaFile(ArenaFile&& other) noexcept;
  ArenaFile& operator=(ArenaFile&&) = delete;
  ArenaFile(const ArenaFile&) = delete;
  ArenaFile& operator=(const ArenaFile&) = delete;
  ~ArenaFile();

  [[nodiscard]] const ArenaSeat& seat() const { return seat_; }
  [[nodiscard]] bool is_open() const { return base_ != nullptr; }  // not moved from
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] bool is_new() const { return is_new_; }
  [[nodiscard]] const ArenaHeader& header() const {
    return *reinterpret_cast<const ArenaHeader*>(base_);
  }
  [[nodiscard]] ArenaSlots<> slots() const { return ArenaSlots<>(base_); }
  [[nodiscard]] std::span<std::byte> slabs() const;
  [[nodiscard]] std::span<std::byte> slab(std::uint32_t slot) const;

  // Memory for a slot's slab, so that touching it cannot fail. ENOSPC where the filesystem has
  // little left, for others need some. 0 or errno; ECANCELED if it was asked to stop before its
  // end. Blocks: the kernel clears it.
  [[nodiscard]] int give_pages(std::uint32_t slot, const std::stop_token& stop = {}) const;
  // Maps what has memory already without a fault for each page.
  [[nodiscard]] int map_pages(std::uint32_t slot, const std::stop_token& stop = {}) const;

 private:
  // For so many bytes, besides what is left to others.
  [[nodiscard]] bool has_room(std::uint64_t bytes) const;
  void take_pages(std::uint32_t slot) const;
  [[nodiscard]] int populate(std::span<std::byte> bytes) const;
  ArenaFile(UniqueFd fd, const ArenaSeat& seat, std::string path, std::byte* base,
            std::size_t bytes, bool is_new);
  static std::optional<ArenaFile> create(const ArenaPlace& place, std::uint64_t bytes);
  static ArenaFile map(UniqueFd fd, const ArenaPlace& place, std::uint64_t bytes, bool is_new);

  UniqueFd fd_;
  ArenaSeat seat_;
  std::string path_;
  std::byte* base_;
  std::size_t bytes_;
  bool is_new_;
};

}  // namespace lmkv
