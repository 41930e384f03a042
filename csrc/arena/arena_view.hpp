// An arena from outside: what is in it, for schedulers and for people, without being a member.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arena/arena_file.hpp"
#include "arena/arena_lock.hpp"
#include "common/types.hpp"

namespace lmkv {

// For one namespace, of which a chunk counts as there when every rank below `ranks` has it. One
// thread. Never waits for more than a fraction of a millisecond.
class ArenaView {
 public:
  // The arena that is there. Throws ArenaError.
  ArenaView(const ArenaPlace& place, const NamespaceDigest& name_space, std::uint32_t ranks);

  // How many of `keys` are there one after the other.
  [[nodiscard]] std::size_t leading(const std::vector<ChunkKey>& keys);
  // Which of them are.
  [[nodiscard]] std::vector<bool> present(const std::vector<ChunkKey>& keys);

 private:
  [[nodiscard]] bool has(const ChunkKey& key);  // with the lock

  const ArenaFile file_;
  ArenaSlots<> slots_;
  ImpatientLock lock_;
  SlotName name_;  // but for key and rank
  const std::uint32_t ranks_;
};

struct ArenaReport {
  struct Member {
    std::uint32_t pid = 0;
    bool is_alive = false;
  };
  std::string path;
  std::uint64_t bytes = 0;        // of all slabs
  std::uint64_t bytes_taken = 0;  // of these, that memory is there for
  std::uint64_t slab_bytes = 0;
  ArenaCounts slots;
  std::vector<Member> members;
  std::uint64_t repairs = 0;
  std::string fault;  // ArenaSlots::fault(); "" if all is well
};

// Empty where there is none. Throws ArenaError for what cannot be read. With `thorough` for a
// fault, too: with the lock, for a millisecond and more where there are many slots.
[[nodiscard]] std::optional<ArenaReport> report_arena(const ArenaPlace& place,
                                                      bool thorough = false);

// Takes it away, with the memory of its chunks; their files stay. Returns how many bytes that were.
// Throws ArenaError, also where engines use it: io_uring and the GPU's driver go on with the pages
// that they were given, whatever becomes of the file.
std::uint64_t remove_arena(const ArenaPlace& place);

}  // namespace lmkv
