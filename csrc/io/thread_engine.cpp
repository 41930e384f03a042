// File operations as blocking system calls on a pool of threads.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "common/access.hpp"
#include "common/background_thread.hpp"
#include "common/enter.hpp"
#include "io/io_engine.hpp"

namespace lmkv {
namespace {

int result_of(long returned) { return returned < 0 ? -errno : static_cast<int>(returned); }

int set_modified(const Operation& op) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  const timespec given[2] = {{0, UTIME_OMIT}, {op.modified_ns / kSecond, op.modified_ns % kSecond}};
  const timespec* const times = op.modified_ns == kModifiedNow ? nullptr : given;
  if (op.descriptor >= 0) return result_of(::futimens(op.descriptor, times));
  return result_of(::utimensat(op.directory, op.path + op.skip, times, AT_SYMLINK_NOFOLLOW));
}

int set_mode(const Operation& op) {
  if (op.descriptor >= 0) return result_of(::fchmod(op.descriptor, op.mode));
  return result_of(set_directory_mode(op.directory, op.path + op.skip, op.mode));
}

constexpr unsigned kAll =
    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

int enter(const Operation& op) {
  if (op.directory == AT_FDCWD) return result_of(::open(op.path, kEnterFlags));
  return result_of(enter_below(op.directory, op.path + op.skip));
}

int execute(const Operation& op) {
  const int directory = op.directory;
  const char* const path = op.path == nullptr ? nullptr : op.path + op.skip;
  switch (op.kind) {
    case OperationKind::kEnter: return enter(op);
    case OperationKind::kOpen: return result_of(::openat(directory, path, op.flags, op.mode));
    case OperationKind::kRead:
      return result_of(::pread(op.descriptor, op.buffer, op.length, static_cast<off_t>(op.offset)));
    case OperationKind::kWrite:
      return result_of(
          ::pwrite(op.descriptor, op.buffer, op.length, static_cast<off_t>(op.offset)));
    case OperationKind::kAllocate:
      return result_of(::fallocate(op.descriptor, 0, 0, static_cast<off_t>(op.length)));
    case OperationKind::kSync: return result_of(::fdatasync(op.descriptor));
    case OperationKind::kClose: return result_of(::close(op.descriptor));
    case OperationKind::kStat:
      return result_of(
          ::statx(directory, path, AT_SYMLINK_NOFOLLOW | op.flags, kStatMask, op.status));
    case OperationKind::kWriteBack: return result_of(::sync_file_range(op.descriptor, 0, 0, kAll));
    case OperationKind::kDropPages:
      return -::posix_fadvise(op.descriptor, 0, 0, POSIX_FADV_DONTNEED);
    case OperationKind::kSetModified: return set_modified(op);
    case OperationKind::kSetMode: return set_mode(op);
    case OperationKind::kRename:
      return result_of(::renameat(directory, path, directory, op.target + op.skip));
    case OperationKind::kMakeDirectory: return result_of(::mkdirat(directory, path, op.mode));
    case OperationKind::kUnlink: return result_of(::unlinkat(directory, path, 0));
    case OperationKind::kRemoveDirectory:
      return result_of(::unlinkat(directory, path, AT_REMOVEDIR));
    case OperationKind::kPause:  // ThreadEngine has waited
    case OperationKind::kDefer: return 0;
  }
  return -EINVAL;
}

class ThreadEngine final : public IoEngine {
 public:
  explicit ThreadEngine(unsigned threads) {
    threads_.reserve(threads);
    try {
      for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
    } catch (const std::system_error&) {  // no more threads for this process or container
      stop();
      throw;
    }
  }

  ~ThreadEngine() override { stop(); }

  void submit(Operation& operation) override {
    {
      const std::lock_guard lock(mutex_);
      if (operation.kind == OperationKind::kPause) {
        const auto pause = std::chrono::seconds(operation.pause.tv_sec) +
                           std::chrono::nanoseconds(operation.pause.tv_nsec);
        pausing_.emplace(Clock::now() + pause, &operation);
      } else if (operation.kind == OperationKind::kDefer) {
        queue_.push_front(&operation);  // other threads take what is behind it
      } else {
        queue_.push_back(&operation);
      }
    }
    wake_.notify_one();
  }

  [[nodiscard]] std::string_view name() const override { return "threads"; }

 private:
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void run() {
    become_background_thread("lmkv-io");
    std::unique_lock lock(mutex_);
    for (;;) {
      Operation* const operation = next(lock);
      if (operation == nullptr) return;
      ++running_;
      lock.unlock();
      operation->handler->on_complete(*operation, execute(*operation));
      lock.lock();
      if (--running_ == 0 && stopping_) wake_.notify_all();
    }
  }

  // Waits for an operation; null when the engine stops and there will be none. A pause takes no
  // thread: the idle ones wait no longer than it lasts.
  Operation* next(std::unique_lock<std::mutex>& lock) {
    for (;;) {
      while (!pausing_.empty() && pausing_.begin()->first <= Clock::now()) {
        queue_.push_back(pausing_.begin()->second);
        pausing_.erase(pausing_.begin());
      }
      if (!queue_.empty()) {
        Operation* const operation = queue_.front();
        queue_.pop_front();
        if (!pausing_.empty()) wake_.notify_one();  // another one minds the time
        return operation;
      }
      // A handler that runs now may still submit: only the last idle thread may end.
      if (stopping_ && running_ == 0 && pausing_.empty()) {
        wake_.notify_all();
        return nullptr;
      }
      if (pausing_.empty()) {
        wake_.wait(lock);
      } else {
        // A copy: another thread may take the pause away while this one waits.
        const Clock::time_point due = pausing_.begin()->first;
        wake_.wait_until(lock, due);
      }
    }
  }

  using Clock = std::chrono::steady_clock;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Operation*> queue_;                          // guarded by mutex_, as the three below
  std::multimap<Clock::time_point, Operation*> pausing_;  // by when they are over
  unsigned running_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<IoEngine> make_thread_engine(unsigned threads) {
  return std::make_unique<ThreadEngine>(threads);
}

}  // namespace lmkv
