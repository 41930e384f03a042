// File operations through io_uring: one ring an I/O thread, owned by it alone.
#include <stdexcept>

#include "io/io_engine.hpp"

#ifndef LMKV_HAVE_LIBURING

namespace lmkv {
std::unique_ptr<IoEngine> make_uring_engine(unsigned) {
  throw std::runtime_error("io_uring: not built in (liburing was missing at build time)");
}
}  // namespace lmkv

#else

#include <fcntl.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include "common/background_thread.hpp"
#include "common/unique_fd.hpp"

namespace lmkv {
namespace {

constexpr unsigned kRingEntries = 256;

// The operations that lmkv needs. The youngest, kMakeDirectory, is in kernels from 5.15 on.
constexpr int kNeededOpcodes[] = {IORING_OP_OPENAT, IORING_OP_READ,     IORING_OP_WRITE,
                                  IORING_OP_CLOSE,  IORING_OP_FSYNC,    IORING_OP_FALLOCATE,
                                  IORING_OP_STATX,  IORING_OP_RENAMEAT, IORING_OP_UNLINKAT,
                                  IORING_OP_MKDIRAT};

void prepare(io_uring_sqe* sqe, const Operation& op) {
  const auto length = static_cast<unsigned>(op.length);
  switch (op.kind) {
    case OperationKind::kOpen:
      io_uring_prep_openat(sqe, AT_FDCWD, op.path, op.flags, op.mode);
      break;
    case OperationKind::kRead:
      io_uring_prep_read(sqe, op.descriptor, op.buffer, length, op.offset);
      break;
    case OperationKind::kWrite:
      io_uring_prep_write(sqe, op.descriptor, op.buffer, length, op.offset);
      break;
    case OperationKind::kAllocate:
      io_uring_prep_fallocate(sqe, op.descriptor, 0, 0, static_cast<off_t>(op.length));
      break;
    case OperationKind::kSync:
      io_uring_prep_fsync(sqe, op.descriptor, IORING_FSYNC_DATASYNC);
      break;
    case OperationKind::kClose: io_uring_prep_close(sqe, op.descriptor); break;
    case OperationKind::kStat:
      io_uring_prep_statx(sqe, AT_FDCWD, op.path, AT_SYMLINK_NOFOLLOW, kStatMask, op.status);
      break;
    case OperationKind::kRename:
      io_uring_prep_renameat(sqe, AT_FDCWD, op.path, AT_FDCWD, op.target, 0);
      break;
    case OperationKind::kMakeDirectory:
      io_uring_prep_mkdirat(sqe, AT_FDCWD, op.path, op.mode);
      break;
    case OperationKind::kUnlink: io_uring_prep_unlinkat(sqe, AT_FDCWD, op.path, 0); break;
    case OperationKind::kRemoveDirectory:
      io_uring_prep_unlinkat(sqe, AT_FDCWD, op.path, AT_REMOVEDIR);
      break;
    case OperationKind::kSetModified: break;  // io_uring has none: UringEngine::submit
  }
}

// DEFER_TASKRUN (6.1) runs completions when this thread asks for them instead of interrupting it;
// COOP_TASKRUN (5.19) is the next best; older kernels take no flag.
int open_ring(io_uring& ring) {
  const unsigned attempts[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN,
      IORING_SETUP_COOP_TASKRUN, 0};
  int error = -EINVAL;
  for (const unsigned flags : attempts) {
    error = io_uring_queue_init(kRingEntries, &ring, flags);
    if (error != -EINVAL) break;
  }
  return error;
}

// Whether the ring takes and completes an operation: a seccomp profile may let a ring be made and
// refuse to enter it.
int try_ring(io_uring& ring) {
  io_uring_prep_nop(io_uring_get_sqe(&ring));
  if (const int submitted = io_uring_submit_and_wait(&ring, 1); submitted < 0) return submitted;
  io_uring_cqe* cqe = nullptr;
  if (const int error = io_uring_peek_cqe(&ring, &cqe); error < 0) return error;
  const int result = cqe->res;
  io_uring_cqe_seen(&ring, cqe);
  return result;
}

int check_opcodes(io_uring& ring) {
  io_uring_probe* probe = io_uring_get_probe_ring(&ring);
  if (probe == nullptr) return -ENOSYS;
  int result = 0;
  for (const int opcode : kNeededOpcodes) {
    if (io_uring_opcode_supported(probe, opcode) == 0) result = -EOPNOTSUPP;
  }
  io_uring_free_probe(probe);
  return result;
}

class RingThread {
 public:
  // Returns once the ring is open; throws std::runtime_error with the kernel's reason otherwise.
  RingThread() : wake_descriptor_(::eventfd(0, EFD_CLOEXEC)) {
    if (wake_descriptor_.get() < 0) throw std::runtime_error(reason(-errno));
    std::promise<int> opened;
    std::future<int> result = opened.get_future();
    thread_ = std::thread([this, &opened] { run(opened); });
    if (const int error = result.get(); error < 0) {
      thread_.join();
      throw std::runtime_error(reason(error));
    }
  }
  RingThread(const RingThread&) = delete;
  RingThread& operator=(const RingThread&) = delete;

  ~RingThread() { stop(); }

  // Ends the thread when all that was submitted is done. Idempotent.
  void stop() {
    if (!thread_.joinable()) return;
    stopping_.store(true, std::memory_order_release);
    wake();
    thread_.join();
  }

  void submit(Operation& operation) {
    if (current == this) {  // from a handler: the loop is about to submit anyway
      local_.push_back(&operation);
      return;
    }
    {
      const std::lock_guard lock(inbox_mutex_);
      inbox_.push_back(&operation);
    }
    wake();
  }

  // The ring that the calling thread drives, if it is an I/O thread.
  static thread_local RingThread* current;

 private:
  static std::string reason(int error) {
    return std::string("io_uring: ") + std::strerror(-error) +
           (error == -EPERM || error == -ENOSYS
                ? " (refused by the kernel, a sysctl or a container's seccomp profile)"
                : "");
  }

  void wake() const {
    const std::uint64_t one = 1;
    // The only failure of an 8-byte eventfd write is a full counter, and that wakes as well.
    [[maybe_unused]] const ssize_t written = ::write(wake_descriptor_.get(), &one, sizeof one);
  }

  void run(std::promise<int>& opened) {
    become_background_thread("lmkv-ring");
    current = this;
    int error = open_ring(ring_);
    if (error == 0) {
      error = check_opcodes(ring_);
      if (error == 0) error = try_ring(ring_);
      if (error < 0) io_uring_queue_exit(&ring_);
    }
    opened.set_value(error);
    if (error < 0) return;
    while (!(stopping_.load(std::memory_order_acquire) && idle())) step();
    io_uring_queue_exit(&ring_);
  }

  bool idle() {
    const std::lock_guard lock(inbox_mutex_);
    return inbox_.empty() && local_.empty() && in_kernel_ == 0;
  }

  void step() {
    {
      const std::lock_guard lock(inbox_mutex_);
      local_.insert(local_.end(), inbox_.begin(), inbox_.end());
      inbox_.clear();
    }
    if (!wake_armed_) arm_wake();
    while (!local_.empty() && in_kernel_ < kRingEntries) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe == nullptr) break;
      Operation* operation = local_.front();
      local_.pop_front();
      prepare(sqe, *operation);
      io_uring_sqe_set_data(sqe, operation);
      ++in_kernel_;
    }
    // What was not taken stays in the queue. Where the kernel is out of memory, or worse, the next
    // try is not made at once.
    const int submitted = io_uring_submit_and_wait(&ring_, 1);
    const bool passing = submitted == -EINTR || submitted == -EAGAIN || submitted == -EBUSY;
    if (submitted < 0 && !passing) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    reap();
  }

  // Handlers may push to local_; they never touch the ring.
  void reap() {
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      auto* operation = static_cast<Operation*>(io_uring_cqe_get_data(cqe));
      const int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (operation == nullptr) {
        wake_armed_ = false;
        continue;
      }
      --in_kernel_;
      operation->handler->on_complete(*operation, result);
    }
  }

  void arm_wake() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return;  // the queue is full, so the next wait returns by itself
    io_uring_prep_read(sqe, wake_descriptor_.get(), &wake_count_, sizeof wake_count_, 0);
    io_uring_sqe_set_data(sqe, nullptr);
    wake_armed_ = true;
  }

  UniqueFd wake_descriptor_;
  std::atomic<bool> stopping_{false};
  std::mutex inbox_mutex_;
  std::vector<Operation*> inbox_;  // guarded by inbox_mutex_

  // Ring thread only.
  io_uring ring_{};
  std::deque<Operation*> local_;
  std::size_t in_kernel_ = 0;
  std::uint64_t wake_count_ = 0;
  bool wake_armed_ = false;

  std::thread thread_;
};

thread_local RingThread* RingThread::current = nullptr;

class UringEngine final : public IoEngine {
 public:
  explicit UringEngine(unsigned threads) {
    for (unsigned i = 0; i < threads; ++i) rings_.push_back(std::make_unique<RingThread>());
  }

  // A thread of either kind may still be on its way out of the other's submit(), though what it
  // submitted is done: all of them end before anything goes.
  ~UringEngine() override {
    for (const std::unique_ptr<RingThread>& ring : rings_) ring->stop();
    blocking_.reset();
  }

  void submit(Operation& operation) override {
    // It may wait for the filesystem's journal or a server: a ring does not wait with it.
    if (operation.kind == OperationKind::kSetModified) return blocking_->submit(operation);
    // What a handler submits stays on its ring: no wake-up, and one file's operations together.
    // (An I/O thread only ever runs handlers of its own engine.)
    if (RingThread::current != nullptr) return RingThread::current->submit(operation);
    const std::size_t turn = next_.fetch_add(1, std::memory_order_relaxed);
    rings_[turn % rings_.size()]->submit(operation);
  }

  [[nodiscard]] std::string_view name() const override { return "io_uring"; }

 private:
  std::vector<std::unique_ptr<RingThread>> rings_;
  std::atomic<std::size_t> next_{0};
  std::unique_ptr<IoEngine> blocking_ = make_thread_engine(1);
};

}  // namespace

std::unique_ptr<IoEngine> make_uring_engine(unsigned threads) {
  return std::make_unique<UringEngine>(threads);
}

}  // namespace lmkv

#endif  // LMKV_HAVE_LIBURING
