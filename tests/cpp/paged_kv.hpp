// A paged KV cache of a test's own, layer by layer, and the options of an engine over it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine_options.hpp"
#include "support.hpp"

namespace lmkv::test {

inline constexpr std::size_t kLayers = 3;
inline constexpr std::size_t kPage = 5000;  // bytes of a layer's block: nothing is aligned by luck
inline constexpr std::size_t kBlocks = 128;
inline constexpr std::uint32_t kBlocksPerChunk = 4;
inline constexpr std::byte kPoison{0xEE};

// A chunk's blocks.
inline std::vector<BlockId> blocks_from(std::uint32_t first) {
  std::vector<BlockId> blocks;
  for (std::uint32_t i = 0; i < kBlocksPerChunk; ++i) blocks.push_back(BlockId{first + i});
  return blocks;
}

class PagedKv {
 public:
  PagedKv() { fill_random(kv_, 1); }

  [[nodiscard]] EngineOptions options_of(const std::string& root, IoEngineChoice io_engine) {
    EngineOptions options;
    options.roots = {root};
    options.namespace_digest = digest_of<NamespaceDigest>(1);
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      const auto base = reinterpret_cast<std::uintptr_t>(page(layer, BlockId{0}).data());
      options.segments.push_back({base, kPage, kPage});
    }
    options.block_count = kBlocks;
    options.block_tokens = 16;
    options.blocks_per_chunk = kBlocksPerChunk;
    options.host_memory = 1 << 20;
    options.request_bytes = 4 * kPageBytes;
    options.io_engine = io_engine;
    return options;
  }

  std::span<std::byte> page(std::size_t layer, BlockId block) {
    const std::size_t at = (layer * kBlocks + static_cast<std::size_t>(block)) * kPage;
    return std::span(kv_).subspan(at, kPage);
  }
  std::vector<std::byte> bytes_of(const std::vector<BlockId>& blocks) {
    std::vector<std::byte> bytes;
    for (const BlockId block : blocks) {
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        const auto part = page(layer, block);
        bytes.insert(bytes.end(), part.begin(), part.end());
      }
    }
    return bytes;
  }
  void poison(const std::vector<BlockId>& blocks) {
    for (const BlockId block : blocks) {
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        std::ranges::fill(page(layer, block), kPoison);
      }
    }
  }

 private:
  std::vector<std::byte> kv_ = std::vector<std::byte>(kLayers * kBlocks * kPage);
};

}  // namespace lmkv::test
