#include "engine/engine_context.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "arena/arena_pool.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kOwnBytes = std::size_t{2} << 30;
constexpr std::size_t kPartOfSlabs = 8;  // one of so many

}  // namespace

EngineContext::EngineContext(const EngineOptions& with, EngineParts parts)
    : options(with), table(with.segments), device(std::move(parts.device)) {
  const auto is_on_network = [](const RootParts& root) {
    return root.error.empty() && root.probe.is_remote;
  };
  const bool is_remote =
      std::ranges::any_of(parts.roots, is_on_network) || is_on_network(parts.remote);
  pool = make_pool(is_remote ? ArenaPool::Reach::kRemote : ArenaPool::Reach::kLocal);
  device->start();
  roots = std::make_unique<Roots>(options, std::move(parts.roots), pool->memory());
  make_remote(std::move(parts.remote));
}

EngineContext::~EngineContext() {
  if (abandoned_.empty()) return;
  pool->end_threads();
  using Kept = std::vector<std::pair<std::unique_ptr<SlabPool>, std::vector<Slab>>>;
  static std::mutex mutex;
  static auto* const kept = new Kept;  // without an end
  const std::lock_guard lock(mutex);
  kept->emplace_back(std::move(pool), std::move(abandoned_));
}

void EngineContext::make_remote(RootParts parts) {
  const RemoteOptions& wanted = options.remote;
  if (wanted.name.empty()) return;
  if (wanted.directory.empty()) {
    auto orders = std::make_unique<RemoteTier>(wanted.name, wanted.load_depth, wanted.store_depth);
    remote_orders = orders.get();
    remote = std::move(orders);
  } else if (remote_error = parts.error; remote_error.empty()) {
    EngineOptions of_root = options;
    of_root.capacity = wanted.capacity;
    auto root = std::make_unique<Root>(of_root, wanted.directory, std::move(parts), pool->memory());
    remote_root = root.get();
    remote = std::move(root);
  }
}

std::size_t EngineContext::slabs_of_stores() const {
  std::size_t all = 0;
  for (const Root* root : roots->usable()) {
    all += root->slabs_of_stores.load(std::memory_order_relaxed);
  }
  return all;
}

std::vector<Tier*> EngineContext::tiers() const {
  std::vector<Tier*> all(roots->usable().begin(), roots->usable().end());
  if (remote != nullptr) all.push_back(remote.get());
  return all;
}

std::size_t EngineContext::part_of_slabs() const {
  return std::max<std::size_t>(1, pool->counts().total / pool->sharers() / kPartOfSlabs);
}

void EngineContext::abandon(Slab slab) {
  pool->disclaim(slab);
  std::size_t all = 0;
  {
    const std::lock_guard lock(mutex_);
    abandoned_.push_back(std::move(slab));
    all = abandoned_.size();
  }
  if (all >= 2 * part_of_slabs()) {
    remote->loads.retire("too many transfers have not come to an end: start the engine again");
  }
}

std::size_t EngineContext::abandoned() const {
  const std::lock_guard lock(mutex_);
  return abandoned_.size();
}

// Without the arena that was asked for an engine works as well, for itself: with as much as it
// would have by default, since what was set is for all of them together.
std::unique_ptr<SlabPool> EngineContext::make_pool(ArenaPool::Reach reach) {
  std::size_t own_bytes = options.host_memory;
  const std::size_t slab_bytes = slab_bytes_of(options);
  if (!options.arena_directory.empty()) {
    const ArenaPlace place{options.arena_directory, slab_bytes, options.access};
    try {
      return std::make_unique<ArenaPool>(place, options.host_memory, options.namespace_digest,
                                         options.rank, reach, *device);
    } catch (const ArenaError& error) {
      arena_error = error.what();
      own_bytes = std::min(own_bytes, std::max(kOwnBytes, 2 * slab_bytes));
    }
  }
  return std::make_unique<PrivateSlabPool>(slab_bytes, own_bytes / slab_bytes, *device);
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

SlabPool::Found EngineContext::find_in_memory(const ChunkIdentity& wanted) {
  SlabPool::Found found = pool->find(wanted.key);
  if (found.chunk && verify_header(found.chunk->bytes(), wanted) != ChunkFault::kNone) {
    found.chunk.reset();
  }
  return found;
}

}  // namespace lmkv
