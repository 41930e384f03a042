// Threads that carry out a remote tier's orders on chunks in memory, and may be told to fail.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common/types.hpp"
#include "engine/remote_tier.hpp"

namespace lmkv::test {

// What a remote engine has: of several hosts, if several Carriers name it.
struct MemoryRemote {
  std::mutex mutex;
  std::unordered_map<ChunkKey, std::vector<std::byte>, ChunkKeyHash> chunks;

  [[nodiscard]] bool has(const ChunkKey& key) {
    const std::lock_guard lock(mutex);
    return chunks.contains(key);
  }
  void flip_a_byte(const ChunkKey& key, std::size_t at) {
    const std::lock_guard lock(mutex);
    chunks.at(key).at(at) ^= std::byte{1};
  }
};

// One thread a lane. Ends when the tier is shut down.
class Carriers {
 public:
  Carriers(RemoteTier& tier, MemoryRemote& remote)
      : tier_(tier),
        remote_(remote),
        loads_([this] { carry(RemoteLane::kLoads); }),
        stores_([this] { carry(RemoteLane::kStores); }) {}
  Carriers(const Carriers&) = delete;
  Carriers& operator=(const Carriers&) = delete;
  ~Carriers() {
    is_held = false;
    loads_.join();
    stores_.join();
  }

  std::atomic<bool> fails{false};
  std::atomic<bool> is_unsettled{false};  // as gets fail
  std::atomic<std::byte*> late{nullptr};  // where the last one of these may still write
  std::atomic<bool> is_held{false};       // orders are taken, and not carried out
  std::atomic<std::size_t> orders{0};
  std::atomic<bool> lets_one{false};
  void let_one_through() { lets_one = true; }
  std::atomic<int> flips{0};  // so many gets bring one bit that is another

 private:
  void carry(RemoteLane lane) {
    while (!tier_.is_shut_down()) {
      for (const RemoteOrder& order : tier_.take(lane, 1 << 20, std::chrono::seconds(1))) {
        ++orders;
        while (is_held && !lets_one.exchange(false))
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        tier_.finish(order.ticket, result_of(order), "told to");
      }
    }
  }

  RemoteResult result_of(const RemoteOrder& order) {
    if (is_unsettled && order.kind == RemoteOrderKind::kGet) {
      late = order.buffer;
      return RemoteResult::kUnsettled;
    }
    return fails ? RemoteResult::kFailed : carry_out(order);
  }

  RemoteResult carry_out(const RemoteOrder& order) {
    const std::lock_guard lock(remote_.mutex);
    const auto found = remote_.chunks.find(order.key);
    const bool is_there = found != remote_.chunks.end();
    switch (order.kind) {
      case RemoteOrderKind::kPut:
        if (is_there) return RemoteResult::kThere;
        remote_.chunks[order.key].assign(order.buffer, order.buffer + order.bytes);
        return RemoteResult::kDone;
      case RemoteOrderKind::kGet:
        if (!is_there) return RemoteResult::kMissing;
        if (found->second.size() != order.bytes) return RemoteResult::kBad;
        std::memcpy(order.buffer, found->second.data(), order.bytes);
        if (flips > 0) {
          --flips;
          order.buffer[order.bytes / 2] ^= std::byte{1};
        }
        return RemoteResult::kDone;
      case RemoteOrderKind::kRemove:
        if (!is_there) return RemoteResult::kMissing;
        remote_.chunks.erase(found);
        return RemoteResult::kDone;
    }
    return RemoteResult::kFailed;
  }

  RemoteTier& tier_;
  MemoryRemote& remote_;
  std::thread loads_;
  std::thread stores_;
};

}  // namespace lmkv::test
