// A remote engine as a tier: orders for threads outside of the core, and their answers.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/fair_queue.hpp"
#include "engine/tier.hpp"

namespace lmkv {

enum class RemoteLane : std::uint8_t { kLoads, kStores };
enum class RemoteOrderKind : std::uint8_t { kGet, kPut, kRemove };

struct RemoteOrder {
  std::uint64_t ticket = 0;
  RemoteOrderKind kind{};
  ChunkKey key;
  std::byte* buffer = nullptr;  // kGet: to be filled; kPut: to be read
  std::size_t bytes = 0;        // all of them
};

enum class RemoteResult : std::uint8_t {
  kDone,
  kThere,    // of a put: it has such a chunk already
  kMissing,  // of a get or a removal
  kBad,      // of a get: what it has under this key has another size
  kFailed,   // it refused, or was not reached
  // Of a get: the same, and the client cannot tell whether its transfer is over.
  kUnsettled,
};

// The engine's clients are libraries of other languages, so whoever embeds the core brings threads
// that `take` orders, carry them out on the slabs themselves, and `finish` each, in any order.
// Between them and the pipelines is what FileIo is for a directory: loads go first and in turns,
// bytes in flight are bounded, what was not taken yet can be cancelled. Thread-safe.
class RemoteTier final : public Tier {
 public:
  using Seconds = std::chrono::duration<double>;

  // `name`: for people. The depths are bytes.
  RemoteTier(std::string name, std::size_t load_depth, std::size_t store_depth);

  void read(Read request) override;
  void write(Write request) override;
  void remove(const ChunkKey& key, std::function<void(Status)> done) override;
  void touch(const ChunkKey&, std::int64_t) override {}
  [[nodiscard]] bool has_room(std::size_t) override { return true; }
  void cancel(std::uint64_t group) override;
  // Ends reads that were not taken yet.
  void refuse_reads(const Status& status);
  // Not ended yet, taken or not.
  [[nodiscard]] std::size_t reads() const;
  [[nodiscard]] bool is_reading() const override;
  [[nodiscard]] std::string name_of(const ChunkKey& key) const override;
  void begin_shutdown() override;
  [[nodiscard]] bool wait_idle(Seconds timeout) override;

  // Blocks until there are orders, at most `timeout`. As many as come to `most_bytes`, but one at
  // least; none after `timeout` or begin_shutdown().
  [[nodiscard]] std::vector<RemoteOrder> take(RemoteLane lane, std::size_t most_bytes,
                                              Seconds timeout);
  // Throws std::invalid_argument for a ticket that is not under way. Its buffer is not touched any
  // more, unless the result says so. Callbacks of the pipelines run in here.
  void finish(std::uint64_t ticket, RemoteResult result, const std::string& message);
  [[nodiscard]] bool is_shut_down() const;

  void add_stats(std::map<std::string, std::uint64_t>& all) const;

 private:
  struct Task {
    RemoteOrder order;
    std::uint64_t group = 0;
    std::function<void(Status, WriteOutcome)> done;

    [[nodiscard]] RemoteLane lane() const {
      return order.kind == RemoteOrderKind::kGet ? RemoteLane::kLoads : RemoteLane::kStores;
    }
  };
  using TaskPointer = std::unique_ptr<Task>;

  void enqueue(TaskPointer task);
  [[nodiscard]] bool has_admissible(RemoteLane lane) const;  // caller holds mutex_
  static void end_all(const std::vector<TaskPointer>& tasks, const Status& status);

  const std::string name_;
  const std::size_t load_depth_;
  const std::size_t store_depth_;

  mutable std::mutex mutex_;  // never held across a callback
  std::condition_variable changed_;
  FairQueue<TaskPointer> loads_queued_;  // guarded by mutex_, as all below
  std::deque<TaskPointer> stores_queued_;
  std::unordered_map<std::uint64_t, TaskPointer> under_way_;
  std::size_t load_bytes_ = 0;  // under way
  std::size_t store_bytes_ = 0;
  std::size_t calling_back_ = 0;
  std::uint64_t next_ticket_ = 1;
  bool shut_down_ = false;
};

}  // namespace lmkv
