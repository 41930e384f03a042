// A small arena in this process's memory, as a new file is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arena/arena_layout.hpp"
#include "arena/arena_slots.hpp"

namespace lmkv::test {

// All of an arena but its slabs. Copies of it are arenas of their own.
class ArenaMemory {
 public:
  static constexpr std::uint32_t kBuckets = 2;  // so few that slots share them

  explicit ArenaMemory(std::uint32_t slots, std::uint32_t nodes = 1) {
    ArenaHeader header{};
    header.slot_count = slots;
    header.bucket_count = kBuckets;
    header.node_count = nodes;
    header.slots_offset = kPageBytes + kControlPages * kPageBytes;
    header.buckets_offset = header.slots_offset + slots * sizeof(ArenaSlot);
    words_.resize((header.buckets_offset + kBuckets * sizeof(Shared32) + 7) / 8);
    std::memcpy(words_.data(), &header, sizeof header);
    view().repair();
  }

  template <class Steps = NoSteps>
  [[nodiscard]] ArenaSlots<Steps> view() {
    return ArenaSlots<Steps>(bytes());
  }
  [[nodiscard]] std::byte* bytes() { return reinterpret_cast<std::byte*>(words_.data()); }
  [[nodiscard]] ArenaSlot& slot(std::uint32_t index) {
    return reinterpret_cast<ArenaSlot*>(bytes() + header().slots_offset)[index];
  }
  void set_name(std::uint32_t index, const SlotName& name) {
    ArenaSlot& to = slot(index);
    std::ranges::copy(name.key_words, to.key);
    std::ranges::copy(name.namespace_words, to.name_space);
    to.rank = name.rank;
  }
  [[nodiscard]] Shared32& bucket(std::uint32_t index) {
    return reinterpret_cast<Shared32*>(bytes() + header().buckets_offset)[index];
  }
  [[nodiscard]] const std::vector<std::uint64_t>& words() const { return words_; }

 private:
  [[nodiscard]] const ArenaHeader& header() {
    return *reinterpret_cast<const ArenaHeader*>(bytes());
  }

  static constexpr std::size_t kControlPages = (sizeof(ArenaControl) + kPageBytes - 1) / kPageBytes;
  std::vector<std::uint64_t> words_;
};

inline SlotName name_of(std::uint64_t key, std::uint32_t rank = 0) {
  SlotName name;
  name.key_words = {key * 0x1'0000'0001U, key, 7, 7};
  name.namespace_words = {1, 2, 3, 4};
  name.rank = rank;
  return name;
}

}  // namespace lmkv::test
