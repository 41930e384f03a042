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
  SlabPool() = default;
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;
  // Every handle is gone by then.
  virtual ~SlabPool() = default;

  // A free slab, or that of the least recently used cached chunk. With the chunk that will be read
  // into it, whoever looks for that finds out that it is on its way.
  [[nodiscard]] std::optional<Slab> try_acquire() { return acquire(nullptr); }
  [[nodiscard]] std::optional<Slab> try_acquire(const ChunkKey& wanted) { return acquire(&wanted); }

  // Makes the chunk in `slab` findable. If the key is there already, the older one stays.
  [[nodiscard]] virtual SharedSlab publish(Slab slab, const ChunkKey& key) = 0;

  // The chunk that it was acquired for will not come: nobody waits for it any more.
  virtual void disclaim(const Slab&) {}

  // Ends its threads: nothing will be acquired any more, though it stays mapped. Idempotent.
  virtual void end_threads() = 0;

  struct Found {
    std::optional<SharedSlab> chunk;
    bool is_arriving = false;  // somebody reads or gathers it just now: worth a moment
  };
  [[nodiscard]] virtual Found find(const ChunkKey& key) = 0;

  [[nodiscard]] virtual SlabCounts counts() const = 0;
  [[nodiscard]] virtual SlabMemory memory() const = 0;
  // Of an arena; 0 for slabs of one engine alone.
  [[nodiscard]] virtual std::size_t shared_slab_bytes() const { return 0; }
  // Engines that have their slabs here, this one among them.
  [[nodiscard]] virtual std::size_t sharers() const { return 1; }
  // What it is, for people.
  [[nodiscard]] virtual std::string info() const = 0;
  // Why the device could not pin it; "" if it could.
  [[nodiscard]] const std::string& pin_error() const { return pin_error_; }

 protected:
  [[nodiscard]] Slab make_slab(std::size_t index) { return {this, index}; }
  [[nodiscard]] SharedSlab make_shared_slab(std::size_t index) { return {this, index}; }
  [[nodiscard]] static std::size_t index_of(const Slab& slab) { return slab.index_; }
  // The handle's use goes over to the caller.
  [[nodiscard]] static std::size_t take_over(Slab& slab) {
    slab.pool_ = nullptr;
    return slab.index_;
  }

  std::string pin_error_;

 private:
  friend class Slab;
  friend class SharedSlab;

  [[nodiscard]] virtual std::optional<Slab> acquire(const ChunkKey* wanted) = 0;
  [[nodiscard]] virtual std::span<std::byte> bytes_of(std::size_t index) const = 0;
  virtual void release(std::size_t index) = 0;
};

// Of one engine's own.
class PrivateSlabPool final : public SlabPool {
 public:
  // `count` slabs of `slab_bytes` (whole pages), pinned by `device`: a GPU's takes all the memory
  // now, the host's as it is used, and 256 MiB ahead of that. Throws std::bad_alloc.
  PrivateSlabPool(std::size_t slab_bytes, std::size_t count, Device& device);
  ~PrivateSlabPool() override;

  [[nodiscard]] SharedSlab publish(Slab slab, const ChunkKey& key) override;
  void end_threads() override { pages_.reset(); }
  [[nodiscard]] Found find(const ChunkKey& key) override;
  [[nodiscard]] SlabCounts counts() const override;
  [[nodiscard]] SlabMemory memory() const override { return {memory_, memory_bytes_, slab_bytes_}; }
  [[nodiscard]] std::string info() const override { return "of this engine alone"; }

 private:
  struct Entry {
    std::optional<ChunkKey> key;                             // set while findable
    std::uint32_t users = 0;                                 // handles
    std::optional<std::list<std::size_t>::iterator> in_lru;  // set while cached
  };

  [[nodiscard]] std::optional<Slab> acquire(const ChunkKey* wanted) override;
  // An index that nobody uses, and its state reset; caller holds mutex_.
  [[nodiscard]] std::optional<std::size_t> take_unused();
  [[nodiscard]] std::span<std::byte> bytes_of(std::size_t index) const override;
  void release(std::size_t index) override;

  const std::size_t slab_bytes_;
  Device& device_;
  std::byte* memory_ = nullptr;  // where the slabs begin, in the mapping
  std::size_t memory_bytes_;
  std::size_t mapped_bytes_;
  void* mapping_ = nullptr;
  std::unique_ptr<PageSupply> pages_;  // may be none

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;     // guarded by mutex_, as all below
  std::vector<std::size_t> free_;  // last in, first out: memory already touched is reused first
  std::size_t used_ = 0;           // slabs that ever were: the first so many
  std::list<std::size_t> lru_;     // least recently used first
  std::unordered_map<ChunkKey, std::size_t, ChunkKeyHash> by_key_;
};

}  // namespace lmkv
