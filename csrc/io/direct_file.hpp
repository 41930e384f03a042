// Whole files, asynchronously: read one into a buffer, or publish a buffer as one.
//
// The state machines here own what a result of an operation means: short reads and writes are
// continued, EINTR and EAGAIN retried, a filesystem that refuses O_DIRECT is remembered and served
// through the page cache, a file appears under its name only when it is whole.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/access.hpp"
#include "common/fair_queue.hpp"
#include "common/status.hpp"
#include "io/io_engine.hpp"

namespace lmkv {

// Before the rename: nothing, or all is on the disk or the server.
enum class Publish { kRename, kSyncThenRename };

struct FileRead {
  std::string path;
  std::byte* buffer = nullptr;  // page-aligned
  std::size_t bytes = 0;        // exact size of the file, whole pages
  std::function<void(Status)> done;
  // Reads of one group keep their order; between two of them every other group gets one.
  std::uint64_t group = 0;
};

struct FileWrite {
  std::string path;
  std::string temporary;                 // written first, renamed to `path`, which it is beside
  std::vector<std::string> directories;  // below the root; made, outermost first, if one is missing
  const std::byte* buffer = nullptr;     // page-aligned
  std::size_t bytes = 0;                 // whole pages
  std::int64_t modified_ns = 0;          // the file's modification time; 0: as it comes
  // Asked on an I/O thread before anything is written; false ends the write with kFull. May be
  // empty.
  std::function<bool()> admit;
  // The status is kOk also when a file of this size was there already; the outcome tells which.
  enum class Outcome { kWritten, kAlreadyThere, kFailed };
  std::function<void(Status, Outcome)> done;
};

// A filesystem's device number, as statx(2) gives it.
struct FilesystemId {
  std::uint32_t major = 0;
  std::uint32_t minor = 0;
  friend bool operator==(const FilesystemId&, const FilesystemId&) = default;
};

// The filesystem that a directory is on, and those that the directories above it are on.
struct MountPlace {
  FilesystemId own;
  std::vector<FilesystemId> above;

  // Whether a directory that is now on `found` is what the mount had covered. Another number alone
  // does not say so: NFS, FUSE, tmpfs and loop devices have a new one each time they are mounted.
  [[nodiscard]] bool has_vanished(const FilesystemId& found) const {
    return found != own && std::ranges::find(above, found) != above.end();
  }
};

struct FileIoOptions {
  // Files are below it, or in it. It may be, or lie behind, a symbolic link; what is below it not.
  std::string root;
  // Missing directories are made where the root is: where its mount has vanished, the empty mount
  // point must not be filled.
  MountPlace place;
  Caching caching = Caching::kDirect;
  Publish publish = Publish::kRename;
  Access access = Access::kPrivate;
  std::size_t request_bytes = 1 << 20;
  // Bytes in flight at the kernel per direction. At least one file of each is always let in, so
  // neither direction starves. While reads are in flight, which somebody waits for, writes get a
  // quarter of their depth; while reads are queued, that one file.
  std::size_t read_depth = 64 << 20;
  std::size_t write_depth = 32 << 20;
  // The modification time of a file that is touched with `wanted` and has `found`.
  std::int64_t (*renew)(std::int64_t found, std::int64_t wanted) = later_of;

  static std::int64_t later_of(std::int64_t found, std::int64_t wanted) {
    return found < wanted ? wanted : found;
  }
};

class FileTask;  // one file's state machine (file_task.hpp)

// Thread-safe. `done` callbacks run on I/O threads; for what never started, inside cancel() or
// begin_shutdown(), or, after that, inside the call that asked.
class FileIo {
 public:
  FileIo(IoEngine& engine, const FileIoOptions& options);
  ~FileIo();
  FileIo(const FileIo&) = delete;
  FileIo& operator=(const FileIo&) = delete;

  // Both return at once; after begin_shutdown() they call back with kCancelled.
  void read(FileRead request);
  void write(FileWrite request);
  // Renews a file's modification time by `modified_ns` (FileIoOptions::renew). Nobody waits for it,
  // and what finds too many others waiting is dropped: both are only counted.
  void touch(std::string path, std::int64_t modified_ns);
  // Removes what stands at `path`: a file, a link, or an empty directory.
  void remove(std::string path, std::function<void(Status)> done);

  // Calls the reads of one group back with kCancelled that have not begun.
  void cancel(std::uint64_t group);

  // Cancels what is queued, and takes in no more. Idempotent.
  void begin_shutdown();
  // True when nothing is in flight any more, after begin_shutdown(); false after `timeout`.
  [[nodiscard]] bool wait_idle(std::chrono::duration<double> timeout);
  // The former, and the latter however long it takes. Idempotent.
  void shutdown();

  [[nodiscard]] Caching caching() const { return caching_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t direct_io_fallbacks() const {
    return fallbacks_.load(std::memory_order_relaxed);
  }
  // Modification times that were set, and that could not be set (dropped ones among them).
  [[nodiscard]] std::uint64_t touched() const { return touched_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t touches_failed() const {
    return touches_failed_.load(std::memory_order_relaxed);
  }
  // Whether any read has begun and not ended; its answer may still be on the way.
  [[nodiscard]] bool is_reading() const;
  [[nodiscard]] std::size_t read_bytes_in_flight() const;
  [[nodiscard]] std::size_t write_bytes_in_flight() const;

 private:
  friend class FileTask;
  struct Lane {
    FairQueue<std::unique_ptr<FileTask>> queue;
    std::size_t bytes_in_flight = 0;
    std::size_t running = 0;  // tasks
  };

  void enqueue(std::unique_ptr<FileTask> task);
  Lane& lane_of(const FileTask& task);
  void start_admissible();
  [[nodiscard]] std::size_t write_depth() const;  // now; caller holds mutex_
  std::unique_ptr<FileTask> next_admissible();    // caller holds mutex_
  // Part of a task's depth, while the rest is still in flight: the next file need not wait for it.
  void give_back(FileTask& task, std::size_t bytes);
  void take_again(FileTask& task);
  void finish(FileTask* task);
  void retire(FileTask* task);
  void refuse_direct();
  void note_touch(int result);

  IoEngine& engine_;
  const FileIoOptions options_;
  std::atomic<Caching> caching_;
  std::atomic<std::uint64_t> fallbacks_{0};
  std::atomic<std::uint64_t> touched_{0};
  std::atomic<std::uint64_t> touches_failed_{0};

  mutable std::mutex mutex_;  // never held across an operation or a callback
  std::condition_variable all_done_;
  Lane reads_;
  Lane writes_;
  Lane removals_;
  Lane touches_;
  std::size_t running_ = 0;  // tasks, of all lanes
  bool shut_down_ = false;
};

}  // namespace lmkv
