// Chunk-sized host buffers, and the host-memory tier that they are when nobody uses them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/types.hpp"
#include "device/device.hpp"
#include "engine/page_supply.hpp"
#include "io/io_engine.hpp"

namespace lmkv {

class SlabPool;

// Exclusive use of one slab. Move-only; gives the slab back when it goes.
class Slab {
 public:
  Slab(Slab&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), index_(other.index_) {}
  Slab& operator=(Slab&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(index_, other.index_);
    return *this;
  }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  ~Slab();

  [[nodiscard]] std::span<std::byte> bytes() const;

 private:
  friend class SlabPool;
  Slab(SlabPool* pool, std::size_t index) : pool_(pool), index_(index) {}
  SlabPool* pool_;
  std::size_t index_;
};

// A sealed or verified chunk in memory, read-only; several may share it. While one lives, the slab
// is not reused.
class SharedSlab {
 public:
  SharedSlab(SharedSlab&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), index_(other.index_) {}
  SharedSlab& operator=(SharedSlab&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(index_, other.index_);
    return *this;
  }
  SharedSlab(const SharedSlab&) = delete;
  SharedSlab& operator=(const SharedSlab&) = delete;
  ~SharedSlab();

  // Device transfers take a mutable pointer in both directions; a scatter only reads.
  [[nodiscard]] std::span<std::byte> bytes() const;

 private:
  friend class SlabPool;
  SharedSlab(SlabPool* pool, std::size_t index) : pool_(pool), index_(index) {}
  SlabPool* pool_;
  std::size_t index_;
};

struct SlabCounts {
  std::size_t total = 0;
  std::size_t free = 0;
  std::size_t in_use = 0;
  std::size_t cached = 0;
};

// Invariant: free + in_use + cached == total. Thread-safe; no call blocks on anything but a lock
// held for nanoseconds.
class SlabPool {
 public:
  // `count` slabs of `slab_bytes` (whole pages), pinned by `device`: a GPU's takes all the memory
  // now, the host's as it is used, and 256 MiB ahead of that. Throws std::bad_alloc.
  SlabPool(std::size_t slab_bytes, std::size_t count, Device& device);
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;
  // Every handle is gone by then.
  ~SlabPool();

  // A free slab, or that of the least recently used cached chunk.
  [[nodiscard]] std::optional<Slab> try_acquire();

  // Makes the chunk in `slab` findable. If the key is there already, the older one stays.
  [[nodiscard]] SharedSlab publish(Slab slab, const ChunkKey& key);
  [[nodiscard]] std::optional<SharedSlab> find(const ChunkKey& key);

  [[nodiscard]] SlabCounts counts() const;
  [[nodiscard]] SlabMemory memory() const { return {memory_, memory_bytes_, slab_bytes_}; }
  [[nodiscard]] const std::string& pin_error() const { return pin_error_; }

 private:
  friend class Slab;
  friend class SharedSlab;

  struct Entry {
    std::optional<ChunkKey> key;                             // set while findable
    std::uint32_t users = 0;                                 // handles
    std::optional<std::list<std::size_t>::iterator> in_lru;  // set while cached
  };

  // An index that nobody uses, and its state reset; caller holds mutex_.
  [[nodiscard]] std::optional<std::size_t> take_unused();
  [[nodiscard]] std::span<std::byte> bytes_of(std::size_t index) const;
  void release(std::size_t index);

  const std::size_t slab_bytes_;
  Device& device_;
  std::byte* memory_ = nullptr;  // where the slabs begin, in the mapping
  std::size_t memory_bytes_;
  std::size_t mapped_bytes_;
  void* mapping_ = nullptr;
  std::string pin_error_;
  std::unique_ptr<PageSupply> pages_;  // may be none

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;     // guarded by mutex_, as all below
  std::vector<std::size_t> free_;  // last in, first out: memory already touched is reused first
  std::size_t used_ = 0;           // slabs that ever were: the first so many
  std::list<std::size_t> lru_;     // least recently used first
  std::unordered_map<ChunkKey, std::size_t, ChunkKeyHash> by_key_;
};

}  // namespace lmkv
