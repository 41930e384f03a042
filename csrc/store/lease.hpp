// One evictor per root at a time, by a file: v1/evictor.lease, "<host> <pid> <random> <beat>".
//
// Taken by O_EXCL, held by rewriting it, given back by removing it. It works wherever O_EXCL and
// rename do, NFS included: no lock, no clock of another host. Who waits looks at the file again
// and again: if it has not changed for the whole expiry by the waiter's own monotonic clock, its
// holder is dead, or stuck for so long that it will notice that it lost the lease.
//
// On a disk so full that there is no room for the file (XFS, say), whoever wants it holds it
// without one: somebody has to begin.
//
// The lease saves work; nothing wrong comes of two holders (a file is removed once, and an evicted
// chunk is a miss), only more may be evicted than need be.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "common/access.hpp"
#include "common/unique_fd.hpp"
#include "store/directory.hpp"

namespace lmkv {

// One thread. Calls block on the disk.
class EvictorLease {
 public:
  using Clock = std::chrono::steady_clock;

  // `paths`: whose temporary names are used to take a dead holder's file away.
  EvictorLease(const ChunkPaths& paths, Clock::duration expiry, Access access = Access::kPrivate);
  EvictorLease(const EvictorLease&) = delete;
  EvictorLease& operator=(const EvictorLease&) = delete;
  ~EvictorLease() { release(); }

  enum class Answer {
    kHeld,    // until release() or until renew() says otherwise
    kBusy,    // somebody else has it, or has just taken it
    kFailed,  // the filesystem does not let it: errno
  };
  [[nodiscard]] Answer try_acquire();
  // Rewrites the file if a quarter of the expiry has passed since the last time. False when the
  // lease was lost: stop what it was for.
  [[nodiscard]] bool renew();
  void release();

  // The filesystem's clock, from when the lease was last written and ours since then: nanoseconds
  // since the epoch. While the lease is held.
  [[nodiscard]] std::int64_t filesystem_now_ns() const;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  // What a waiter compares: every renewal changes it.
  struct Seen {
    std::uint64_t inode = 0;
    std::int64_t modified_ns = 0;
    std::string text;
    bool is_directory = false;
    friend bool operator==(const Seen&, const Seen&) = default;
  };

  [[nodiscard]] static std::optional<Seen> look(int directory, const char* name);
  // A file as it was first seen, and when: as long as it does not change, its owner may be dead.
  struct Watched {
    std::optional<Seen> seen;
    Clock::time_point since;
  };

  // Where it lies: <root>/v1, entered anew by each call.
  [[nodiscard]] UniqueFd enter_tree() const;
  bool create(int tree);
  Answer hold_without_file();
  bool write(int descriptor);
  [[nodiscard]] bool is_dead(const Seen& now, Watched& watched) const;
  void take_away(int tree, const Seen& dead);
  [[nodiscard]] UniqueFd open_own(int tree);

  const ChunkPaths paths_;
  const std::string path_;
  const Clock::duration expiry_;
  const Access access_;
  const std::string holder_;  // "<host> <pid> <random>"
  std::uint64_t beat_ = 0;
  bool held_ = false;
  bool has_file_ = false;    // while it is held
  std::uint64_t inode_ = 0;  // of the file while it is held
  Clock::time_point renewed_at_;
  std::int64_t renewed_ns_ = 0;  // the same moment, by the filesystem's clock
  Watched holder_watched_;
  Watched taker_watched_;
};

}  // namespace lmkv
