#include "engine/slab_pool.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <new>
#include <system_error>

namespace lmkv {
namespace {

constexpr std::size_t kHugePageBytes = 2 << 20;  // of x86-64 and, with pages of 4 KiB, of Arm

// Behind the slabs in use so much memory has its pages: enough for loads that a fast disk brings
// while the pages behind these are made.
constexpr std::size_t kBytesAhead = 256 << 20;

}  // namespace

Slab::~Slab() {
  if (pool_ != nullptr) pool_->release(index_);
}

std::span<std::byte> Slab::bytes() const { return pool_->bytes_of(index_); }

SharedSlab::~SharedSlab() {
  if (pool_ != nullptr) pool_->release(index_);
}

std::span<std::byte> SharedSlab::bytes() const { return pool_->bytes_of(index_); }

PrivateSlabPool::PrivateSlabPool(std::size_t slab_bytes, std::size_t count, Device& device)
    : slab_bytes_(slab_bytes),
      device_(device),
      memory_bytes_(slab_bytes * count),
      mapped_bytes_(memory_bytes_ + kHugePageBytes),
      entries_(count) {
  mapping_ = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  // Huge pages begin at multiples of their size only.
  const auto begin = reinterpret_cast<std::uintptr_t>(mapping_);
  memory_ = static_cast<std::byte*>(mapping_) + (kHugePageBytes - begin % kHugePageBytes);
  // A fork while the kernel writes to a private page by O_DIRECT would lose the write: open(2).
  ::madvise(memory_, memory_bytes_, MADV_DONTFORK);
  ::madvise(memory_, memory_bytes_, MADV_HUGEPAGE);
  device_.place(memory_, memory_bytes_);
  pin_error_ = device_.pin(memory_, memory_bytes_);
  free_.reserve(count);
  for (std::size_t index = count; index > 0; --index) free_.push_back(index - 1);
  try {
    pages_ = std::make_unique<PageSupply>(memory_, memory_bytes_);
    pages_->reach(kBytesAhead);
  } catch (const std::system_error&) {
    // No thread for it: then pages come when they are touched.
  }
}

PrivateSlabPool::~PrivateSlabPool() {
  assert(counts().in_use == 0);
  pages_.reset();
  if (pin_error_.empty()) device_.unpin(memory_);
  ::munmap(mapping_, mapped_bytes_);
}

std::span<std::byte> PrivateSlabPool::bytes_of(std::size_t index) const {
  return {memory_ + index * slab_bytes_, slab_bytes_};
}

std::optional<Slab> PrivateSlabPool::acquire(const ChunkKey*) {
  std::optional<std::size_t> index;
  bool is_fresh = false;
  {
    const std::lock_guard lock(mutex_);
    index = take_unused();
    if (!index) return std::nullopt;
    entries_[*index].users = 1;
    is_fresh = *index >= used_;
    used_ = std::max(used_, *index + 1);
  }
  if (is_fresh && pages_) pages_->reach((*index + 1) * slab_bytes_ + kBytesAhead);
  return make_slab(*index);
}

std::optional<std::size_t> PrivateSlabPool::take_unused() {
  if (!free_.empty()) {
    const std::size_t index = free_.back();
    free_.pop_back();
    return index;
  }
  if (lru_.empty()) return std::nullopt;
  const std::size_t index = lru_.front();
  lru_.pop_front();
  by_key_.erase(*entries_[index].key);
  entries_[index] = Entry{};
  return index;
}

SharedSlab PrivateSlabPool::publish(Slab slab, const ChunkKey& key) {
  const std::size_t index = take_over(slab);
  const std::lock_guard lock(mutex_);
  if (by_key_.emplace(key, index).second) entries_[index].key = key;
  return make_shared_slab(index);
}

SlabPool::Found PrivateSlabPool::find(const ChunkKey& key) {
  const std::lock_guard lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return {};
  Entry& entry = entries_[found->second];
  if (entry.in_lru) {
    lru_.erase(*entry.in_lru);
    entry.in_lru.reset();
  }
  ++entry.users;
  return {make_shared_slab(found->second), false};
}

void PrivateSlabPool::release(std::size_t index) {
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[index];
  if (--entry.users > 0) return;
  if (entry.key) {
    entry.in_lru = lru_.insert(lru_.end(), index);
  } else {
    free_.push_back(index);
  }
}

SlabCounts PrivateSlabPool::counts() const {
  const std::lock_guard lock(mutex_);
  SlabCounts counts{entries_.size(), free_.size(), 0, lru_.size()};
  counts.in_use = counts.total - counts.free - counts.cached;
  return counts;
}

}  // namespace lmkv
