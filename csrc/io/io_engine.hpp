// The seam to the kernel: one file operation at a time, asynchronous, with -errno results.
//
// Two implementations, chosen once at start: UringEngine (one ring an I/O thread) and ThreadEngine
// (blocking system calls on a pool). What a result means, short reads and writes included, is the
// business of direct_file.cpp, above the seam, so that it is written once.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace lmkv {

enum class OperationKind : std::uint8_t {
  kEnter,            // path                     -> descriptor of a directory, O_PATH (links: below)
  kOpen,             // path, flags, mode        -> file descriptor
  kRead,             // descriptor, buffer, length, offset -> bytes, 0 at the end of the file
  kWrite,            // descriptor, buffer, length, offset -> bytes
  kAllocate,         // descriptor, length       -> 0
  kSync,             // descriptor               -> 0 (data and size, as fdatasync)
  kWriteBack,        // descriptor               -> 0 when its pages are written (no metadata)
  kDropPages,        // descriptor               -> 0 (its clean pages leave the page cache)
  kSetModified,      // descriptor or, if -1, path; modified_ns -> 0 (links are not followed)
  kSetMode,          // descriptor or, if -1, a directory's path; mode -> 0 (as kSetModified)
  kClose,            // descriptor               -> 0
  kStat,             // path, status, flags      -> 0 (symbolic links are not followed)
  kRename,           // path, target             -> 0
  kMakeDirectory,    // path, mode               -> 0
  kUnlink,           // path                     -> 0
  kRemoveDirectory,  // path                     -> 0
  kPause,            // pause                    -> 0 when so much time has passed
  kDefer,            // -> 0, when what was submitted before it is with the kernel
};

struct Operation;

class OperationHandler {
 public:
  // Called exactly once for every submitted operation, on an I/O thread. `result` is what the table
  // above says, or -errno. May submit further operations; must not block on one.
  virtual void on_complete(Operation& operation, int result) = 0;

 protected:
  ~OperationHandler() = default;
};

// Owned by the submitter. It, and all that it points to, stays valid until on_complete.
struct Operation {
  OperationKind kind{};
  OperationHandler* handler = nullptr;
  int descriptor = -1;
  int flags = 0;
  mode_t mode = 0;
  std::byte* buffer = nullptr;  // read only by kWrite
  std::size_t length = 0;
  std::uint64_t offset = 0;
  const char* path = nullptr;
  const char* target = nullptr;
  // Where paths are resolved from, without their first `skip` bytes, which name it. kEnter follows
  // links without it, and none with it.
  int directory = AT_FDCWD;
  std::size_t skip = 0;
  struct statx* status = nullptr;  // type, size and modification time
  std::int64_t modified_ns = 0;    // since the epoch, or kModifiedNow
  timespec pause{};
  int retries = 0;  // so far, after EINTR or EAGAIN (the submitter's own count)
};

// By the filesystem's clock. Others than a file's owner may give it no other time (utimensat(2)).
inline constexpr std::int64_t kModifiedNow = std::numeric_limits<std::int64_t>::min();

// For kStat: a network filesystem asks its server, whatever it remembers.
inline constexpr int kAskServer = AT_STATX_FORCE_SYNC;

inline constexpr unsigned kStatMask = STATX_TYPE | STATX_SIZE | STATX_MTIME;

// Slabs, one behind the other.
struct SlabMemory {
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
  std::size_t slab_bytes = 0;
};

class IoEngine {
 public:
  IoEngine() = default;
  IoEngine(const IoEngine&) = delete;
  IoEngine& operator=(const IoEngine&) = delete;
  // Waits for every operation that was submitted.
  virtual ~IoEngine() = default;

  // Any thread; never blocks on the disk.
  virtual void submit(Operation& operation) = 0;

  // Where most buffers will lie. Once, before the first operation; the memory outlives the engine.
  // Returns why the engine makes nothing of it, or an empty string. It takes no memory by itself: a
  // slab is made known to the kernel when it is first read into or written from.
  virtual std::string register_memory(const SlabMemory&) { return "this engine has no use for it"; }

  [[nodiscard]] virtual std::string_view name() const = 0;
  // What the engine could and could not get from the kernel, in words. Any thread.
  [[nodiscard]] virtual std::map<std::string, std::string> info() const { return {}; }
};

enum class IoEngineChoice { kAuto, kUring, kThreads };
enum class Caching { kDirect, kBuffered };
// What the kernel does with a request that it is given: takes it, or (FUSE, a write that makes a
// file longer) keeps the thread until it is done. There one that hangs would hang a ring.
enum class Submission { kReturns, kBlocks };

struct IoEngineSelection {
  std::unique_ptr<IoEngine> engine;
  std::string reason;  // why this one, in words for the log
};

// Starts the chosen engine with `threads` I/O threads, for files that are mostly served so. kAuto
// takes io_uring for direct I/O where kernel, seccomp profile, build and filesystem allow it.
// Throws std::runtime_error when kUring was asked for and is refused.
IoEngineSelection start_io_engine(IoEngineChoice choice, unsigned threads,
                                  Caching caching = Caching::kDirect,
                                  Submission submission = Submission::kReturns);

// The implementations' own constructors, for start_io_engine and tests.
std::unique_ptr<IoEngine> make_thread_engine(unsigned threads);
// Throws std::runtime_error with the kernel's reason when io_uring cannot be used.
std::unique_ptr<IoEngine> make_uring_engine(unsigned threads);

}  // namespace lmkv
