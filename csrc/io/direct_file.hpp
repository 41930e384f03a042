// Whole files, asynchronously: read one into a buffer, or publish a buffer as one.
//
// The state machines here own what a result of an operation means: short reads and writes are
// continued, EINTR and EAGAIN retried, a filesystem that refuses O_DIRECT is remembered and served
// through the page cache, a file appears under its name only when it is whole.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/status.hpp"
#include "io/io_engine.hpp"

namespace lmkv {

enum class Publish { kRename, kSyncThenRename };

struct FileRead {
  std::string path;
  std::byte* buffer = nullptr;  // page-aligned
  std::size_t bytes = 0;        // exact size of the file, whole pages
  std::function<void(Status)> done;
};

struct FileWrite {
  std::string path;
  std::string temporary;                 // written first, renamed to `path` when whole
  std::string root;                      // is there, or the write fails
  std::vector<std::string> directories;  // made, outermost first, if one turns out to be missing
  const std::byte* buffer = nullptr;     // page-aligned
  std::size_t bytes = 0;                 // whole pages
  std::int64_t modified_ns = 0;          // the file's modification time at least; 0: as it comes
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

struct FileIoOptions {
  // Missing directories are made on this filesystem only: where a mount has vanished, its empty
  // mount point, on another one, must not be filled.
  FilesystemId filesystem;
  Caching caching = Caching::kDirect;
  Publish publish = Publish::kRename;
  std::size_t request_bytes = 1 << 20;
  // Bytes in flight at the kernel per direction. At least one file of each is always let in, so
  // neither direction starves; while reads wait, that one is all that writes get.
  std::size_t read_depth = 64 << 20;
  std::size_t write_depth = 32 << 20;
};

class FileTask;  // one file's state machine (file_task.hpp)

// Thread-safe. `done` callbacks run on I/O threads; for what never started, inside shutdown(), or,
// after that, inside the call that asked.
class FileIo {
 public:
  FileIo(IoEngine& engine, const FileIoOptions& options);
  ~FileIo();
  FileIo(const FileIo&) = delete;
  FileIo& operator=(const FileIo&) = delete;

  // Both return at once; after shutdown() they call back with kCancelled.
  void read(FileRead request);
  void write(FileWrite request);
  // Renews a file's modification time if it is older than `modified_ns`. Nobody waits for it, and
  // what finds too many others waiting is dropped: both are only counted.
  void touch(std::string path, std::int64_t modified_ns);
  // Removes what stands at `path`: a file, a link, or an empty directory.
  void remove(std::string path, std::function<void(Status)> done);

  // Cancels what is queued and waits for what is in flight. Idempotent.
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
  [[nodiscard]] std::size_t read_bytes_in_flight() const;
  [[nodiscard]] std::size_t write_bytes_in_flight() const;

 private:
  friend class FileTask;
  struct Lane {
    std::deque<std::unique_ptr<FileTask>> queue;
    std::size_t bytes_in_flight = 0;
  };

  void enqueue(std::unique_ptr<FileTask> task);
  Lane& lane_of(const FileTask& task);
  void start_admissible();
  std::unique_ptr<FileTask> next_admissible();  // caller holds mutex_
  void finish(FileTask* task);
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
  std::size_t touches_running_ = 0;
  std::size_t running_ = 0;
  bool shut_down_ = false;
};

}  // namespace lmkv
