// Paged KV caches of every shape that vLLM hands over, full of bytes that tell where they belong.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "device/segment_table.hpp"

namespace lmkv::test {

// L layers, B blocks, N tokens, H heads, C bytes: the order of dimensions in memory.
enum class Layout { kLbnhc, kLbhnc, kBlnhc, kBlhnc };

inline std::string name_of(Layout layout) {
  switch (layout) {
    case Layout::kLbnhc: return "LBNHC";
    case Layout::kLbhnc: return "LBHNC";
    case Layout::kBlnhc: return "BLNHC";
    case Layout::kBlhnc: return "BLHNC";
  }
  return "?";
}

struct CacheShape {
  Layout layout = Layout::kLbnhc;
  std::size_t layers = 3;
  std::size_t blocks = 64;
  std::size_t page_bytes = 4096;
  std::size_t padding = 0;       // behind every page
  std::size_t misalignment = 0;  // of the first byte, from a multiple of 16

  [[nodiscard]] bool blocks_outermost() const {
    return layout == Layout::kBlnhc || layout == Layout::kBlhnc;
  }
};

inline std::vector<std::byte> random_bytes(std::size_t count, unsigned seed) {
  std::vector<std::byte> bytes(count);
  std::mt19937_64 random(seed);
  std::size_t at = 0;
  for (; at + 8 <= count; at += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, 8);
  }
  for (; at < count; ++at) bytes[at] = static_cast<std::byte>(random());
  return bytes;
}

// Distinct ids below `limit`, in random order.
inline std::vector<BlockId> random_blocks(std::size_t count, std::size_t limit, unsigned seed) {
  std::vector<std::uint32_t> ids(limit);
  std::iota(ids.begin(), ids.end(), 0U);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(seed));
  std::vector<BlockId> blocks;
  for (std::size_t i = 0; i < count; ++i) blocks.push_back(BlockId{ids[i]});
  return blocks;
}

class PagedCache {
 public:
  explicit PagedCache(const CacheShape& shape, unsigned seed = 1)
      : shape_(shape),
        memory_(random_bytes(shape.layers * shape.blocks * (shape.page_bytes + shape.padding) + 32,
                             seed)) {
    const auto begin = reinterpret_cast<std::uintptr_t>(memory_.data());
    first_ = (16 - begin % 16) % 16 + shape.misalignment;
  }

  [[nodiscard]] SegmentTable table() const {
    std::vector<Segment> segments;
    for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
      segments.push_back({reinterpret_cast<std::uintptr_t>(memory_.data()) + offset(layer, 0),
                          offset(layer, 1) - offset(layer, 0), shape_.page_bytes});
    }
    return SegmentTable(segments);
  }

  // What a gather of these blocks must give, byte by byte.
  [[nodiscard]] std::vector<std::byte> contiguous(const std::vector<BlockId>& blocks) const {
    std::vector<std::byte> bytes;
    for (const BlockId block : blocks) {
      for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
        const auto page = memory_.begin() + static_cast<std::ptrdiff_t>(
                                                offset(layer, static_cast<std::size_t>(block)));
        bytes.insert(bytes.end(), page, page + static_cast<std::ptrdiff_t>(shape_.page_bytes));
      }
    }
    return bytes;
  }

  // What a scatter must do, byte by byte.
  void set(const std::vector<BlockId>& blocks, const std::vector<std::byte>& bytes) {
    auto from = bytes.begin();
    for (const BlockId block : blocks) {
      for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
        const auto page = memory_.begin() + static_cast<std::ptrdiff_t>(
                                                offset(layer, static_cast<std::size_t>(block)));
        std::copy_n(from, shape_.page_bytes, page);
        from += static_cast<std::ptrdiff_t>(shape_.page_bytes);
      }
    }
  }

  // All of it, paddings and bytes around included: what must not change does not.
  [[nodiscard]] std::vector<std::byte>& memory() { return memory_; }
  [[nodiscard]] const CacheShape& shape() const { return shape_; }

 private:
  [[nodiscard]] std::size_t offset(std::size_t layer, std::size_t block) const {
    const std::size_t page = shape_.page_bytes + shape_.padding;
    return first_ + page * (shape_.blocks_outermost() ? block * shape_.layers + layer
                                                      : layer * shape_.blocks + block);
  }

  CacheShape shape_;
  std::vector<std::byte> memory_;
  std::size_t first_ = 0;
};

}  // namespace lmkv::test
