// How much of the directory's space is used, who may still write, and how much has to go.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "io/direct_file.hpp"

namespace lmkv {

// As df(1) sees it: `total` is what is used and what we may still use, `free` the latter.
struct FilesystemSpace {
  std::uint64_t total = 0;
  std::uint64_t free = 0;
  std::uint64_t names_free = ~std::uint64_t{0};  // files that may still be made
};

// Of the filesystem under `root`, unless its mount has vanished: its mount point's says nothing.
// Empty with errno (ENODEV: vanished). Blocks on the disk.
[[nodiscard]] std::optional<FilesystemSpace> filesystem_space(const std::string& root,
                                                              const MountPlace& place);

struct SpaceLimits {
  std::uint64_t capacity = 0;     // bytes below the root; 0: no limit
  double free_space_floor = 0.0;  // of the filesystem's total, 0 to 1
  // Bytes that may be reserved near a limit without a look at the filesystem since: what others
  // stored meanwhile is not known. Further away it is a quarter of what is left.
  std::uint64_t unseen = std::uint64_t{1} << 62;
};

// Why a store was refused.
enum class Refusal { kNone, kNotCounted, kCapacity, kFloor };
[[nodiscard]] std::string_view in_words(Refusal refusal);

enum class EvictionReason { kNone, kCapacity, kFloor, kFullDisk, kAge };

struct Excess {
  std::uint64_t bytes = 0;
  EvictionReason reason = EvictionReason::kNone;  // of the limit that asks for most
};

// The ledger of one engine. What is used is what the last scan found and what changed since then:
// our own stores, or by how much the filesystem's free space shrank, whichever is more, because
// the latter has the stores of other processes in it. It errs on the side of more used, and the
// next scan corrects it.
//
// Eviction starts a little below a limit (97.5 % of the capacity, 105 % of the floor) and goes on
// to 95 % and 110 %, so that stores need not wait for it; no store is admitted above a limit.
//
// The floor takes back no more than this engine has stored and not evicted since it started: a disk
// that others fill would otherwise cost the whole cache, and they would fill what it leaves.
//
// Thread-safe. Nothing here touches the disk; `attention` is called, outside the lock, when there
// may be something to evict or the free space should be looked at again.
class SpaceLedger {
 public:
  using Clock = std::chrono::steady_clock;

  SpaceLedger(const SpaceLimits& limits, std::function<void()> attention);
  SpaceLedger(const SpaceLedger&) = delete;
  SpaceLedger& operator=(const SpaceLedger&) = delete;

  // Whether a store of `bytes` may go ahead. A refusal makes room the evictor's business.
  [[nodiscard]] bool has_room(std::size_t bytes);
  // The same, and the bytes count as used from now on: settle() follows.
  [[nodiscard]] bool try_reserve(std::size_t bytes);
  // A reserved store ended.
  void settle(std::size_t bytes, bool written);
  // A store of `bytes` met ENOSPC or (`quota`) EDQUOT, whatever the ledger says. Something is
  // evicted for it, but less and less often where that does not help, and not a fourth time before
  // a store succeeds: a directory that takes no more names says the same, and the cache is not to
  // be emptied for it.
  void met_full_disk(std::size_t bytes, bool quota = false, Clock::time_point now = Clock::now());

  // The housekeeping thread's.
  void saw_filesystem(const FilesystemSpace& space);
  void begin_scan();
  void end_scan(std::uint64_t used, bool complete);
  void evicted(std::uint64_t bytes);
  // Whether eviction should start, by the estimate: a scan has to confirm it.
  [[nodiscard]] bool may_have_excess(Clock::time_point now = Clock::now()) const;
  // Nobody else evicts, and the filesystem was seen since. What another has already made room for
  // is not asked for any more.
  void begin_pass();
  // To evict, by what is known for certain: nothing is evicted because others used the disk.
  [[nodiscard]] Excess excess(Clock::time_point now = Clock::now()) const;
  // The pass is over, and the filesystem was seen since: what was refused until now has been seen
  // to, as far as possible. One for the floor that freed nothing is not repeated for a minute, then
  // two, up to ten: space that snapshots or open files hold comes back late or never.
  void made_room(EvictionReason reason = EvictionReason::kNone,
                 Clock::time_point now = Clock::now());

  // What is known for certain: the last scan's, and our own changes since.
  [[nodiscard]] std::uint64_t used() const;
  // Whether stores are refused.
  [[nodiscard]] bool is_full() const;
  // Why the last store that was refused was. For people.
  [[nodiscard]] Refusal last_refusal() const;

 private:
  // All with mutex_ held.
  [[nodiscard]] std::uint64_t known() const;
  [[nodiscard]] std::uint64_t estimate() const;
  [[nodiscard]] std::uint64_t free_estimate() const;
  [[nodiscard]] std::uint64_t floor_bytes() const;
  [[nodiscard]] Refusal refusal_of(std::size_t bytes) const;
  [[nodiscard]] bool admits(std::size_t bytes);
  [[nodiscard]] bool near_limit() const;
  [[nodiscard]] std::uint64_t left() const;
  [[nodiscard]] std::uint64_t excess_over_capacity(std::uint64_t used) const;
  [[nodiscard]] std::uint64_t excess_over_floor(Clock::time_point now) const;
  [[nodiscard]] std::uint64_t excess_for_full_disk() const;

  const SpaceLimits limits_;
  const std::function<void()> attention_;

  mutable std::mutex mutex_;
  bool scanned_ = false;
  std::uint64_t scanned_bytes_ = 0;
  std::int64_t own_bytes_ = 0;          // written less evicted since that scan began
  std::int64_t own_bytes_of_scan_ = 0;  // the same since the scan that is under way began
  std::uint64_t reserved_ = 0;
  std::uint64_t unseen_ = 0;                   // reserved since the filesystem was seen
  std::optional<FilesystemSpace> filesystem_;  // as last seen, our own changes since then added
  std::optional<std::uint64_t> free_at_scan_;
  std::optional<std::uint64_t> free_at_scan_begin_;
  Refusal last_refusal_ = Refusal::kNone;
  std::size_t refused_bytes_ = 0;      // the largest store refused since made_room()
  std::size_t full_disk_bytes_ = 0;    // the same of met_full_disk()
  bool full_disk_is_quota_ = false;    // one of these: the free space says nothing
  int full_disk_passes_ = 0;           // since a store succeeded
  Clock::time_point full_disk_again_;  // not heard of before that
  Clock::duration full_disk_pause_{0};
  std::uint64_t full_disk_evicted_ = 0;  // for the last one
  std::uint64_t full_disk_written_ = 0;  // since then
  std::uint64_t taken_ = 0;              // by our stores since the start, less what we evicted
  std::uint64_t pass_free_ = 0;          // when the pass began
  std::uint64_t pass_written_ = 0;       // since then
  Clock::time_point floor_again_;        // nothing is evicted for the floor before that
  Clock::duration floor_pause_{0};
};

}  // namespace lmkv
