#include "engine/engine_context.hpp"

#include <stdexcept>
#include <string>
#include <utility>

namespace lmkv {

EngineContext::EngineContext(const EngineOptions& with, EngineParts parts)
    : options(with), table(with.segments), device(std::move(parts.device)) {
  const std::size_t slab_bytes = slab_bytes_of(options);
  pool = std::make_unique<SlabPool>(slab_bytes, options.host_memory / slab_bytes, *device);
  device->start();
  roots = std::make_unique<Roots>(options, std::move(parts.roots), pool->memory());
}

ChunkIdentity EngineContext::identity(const ChunkKey& key, std::uint64_t token_begin,
                                      std::size_t blocks) const {
  if (blocks == 0 || blocks > options.blocks_per_chunk) {
    throw std::invalid_argument("a chunk of " + std::to_string(blocks) + " blocks, where 1 to " +
                                std::to_string(options.blocks_per_chunk) + " are possible");
  }
  ChunkIdentity identity;
  identity.namespace_digest = options.namespace_digest;
  identity.key = key;
  identity.rank = options.rank;
  identity.token_begin = token_begin;
  identity.block_tokens = options.block_tokens;
  identity.block_count = static_cast<std::uint32_t>(blocks);
  identity.block_bytes = table.block_bytes();
  return identity;
}

void EngineContext::check_blocks(const std::vector<BlockId>& blocks) const {
  for (const BlockId block : blocks) {
    if (static_cast<std::size_t>(block) >= options.block_count) {
      throw std::invalid_argument("block id " + std::to_string(static_cast<std::size_t>(block)) +
                                  " in a KV cache of " + std::to_string(options.block_count) +
                                  " blocks");
    }
  }
}

std::optional<SharedSlab> EngineContext::find_in_memory(const ChunkIdentity& wanted) {
  std::optional<SharedSlab> found = pool->find(wanted.key);
  if (found && verify_header(found->bytes(), wanted) != ChunkFault::kNone) found.reset();
  return found;
}

}  // namespace lmkv
