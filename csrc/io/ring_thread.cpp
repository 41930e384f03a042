#include "io/ring_thread.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "common/background_thread.hpp"

namespace lmkv {
namespace {

thread_local RingThread* this_threads_ring = nullptr;

std::string reason(int error) {
  return std::string("io_uring: ") + std::strerror(-error) +
         (error == -EPERM || error == -ENOSYS
              ? " (refused by the kernel, a sysctl or a container's seccomp profile)"
              : "");
}

}  // namespace

RingThread* RingThread::current() { return this_threads_ring; }

RingThread::RingThread() : wake_descriptor_(::eventfd(0, EFD_CLOEXEC)) {
  if (wake_descriptor_.get() < 0) throw std::runtime_error(reason(-errno));
  std::promise<int> opened;
  std::future<int> result = opened.get_future();
  thread_ = std::thread([this, &opened] { run(opened); });
  if (const int error = result.get(); error < 0) {
    thread_.join();
    throw std::runtime_error(reason(error));
  }
}

void RingThread::stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true, std::memory_order_release);
  wake();
  thread_.join();
}

void RingThread::submit(Operation& operation) {
  if (current() == this) {  // from a handler: the loop is about to submit anyway
    local_.push_back(&operation);
    return;
  }
  bool first = false;
  {
    const std::lock_guard lock(inbox_mutex_);
    first = inbox_.empty();
    inbox_.push_back(&operation);
  }
  if (first) wake();  // who came before has woken it, or is about to
}

int RingThread::register_memory(const SlabMemory& memory) {
  Registration registration{memory, {}};
  std::future<int> result = registration.result.get_future();
  {
    const std::lock_guard lock(inbox_mutex_);
    registration_ = &registration;
  }
  wake();
  return result.get();
}

void RingThread::wake() const {
  const std::uint64_t one = 1;
  // The only failure of an 8-byte eventfd write is a full counter, and that wakes as well.
  [[maybe_unused]] const ssize_t written = ::write(wake_descriptor_.get(), &one, sizeof one);
}

void RingThread::run(std::promise<int>& opened) {
  become_background_thread("lmkv-ring");
  this_threads_ring = this;
  const int error = open_ring(ring_, setup_);
  opened.set_value(error);
  if (error < 0) return;
  while (!(stopping_.load(std::memory_order_acquire) && idle())) step();
  io_uring_queue_exit(&ring_);
}

bool RingThread::idle() {
  const std::lock_guard lock(inbox_mutex_);
  return inbox_.empty() && local_.empty() && in_kernel_ == 0;
}

void RingThread::step() {
  take_inbox();
  // Behind that: what comes from here on finds the wake-up armed, or still to be read.
  if (!wake_armed_) arm_wake();
  fill_queue();
  // What was not taken stays in the queue.
  const int submitted = io_uring_submit_and_wait(&ring_, 1);
  const unsigned reaped = reap();
  // Out of memory, or worse: where nothing moves, the next try is not made at once.
  if (submitted < 0 && submitted != -EINTR && reaped == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void RingThread::take_inbox() {
  Registration* registration = nullptr;
  {
    const std::lock_guard lock(inbox_mutex_);
    local_.insert(local_.end(), inbox_.begin(), inbox_.end());
    inbox_.clear();
    std::swap(registration, registration_);
  }
  if (registration != nullptr) {
    registration->result.set_value(slabs_.open(ring_, registration->memory));
  }
}

// The completion queue is twice as long as the ring's: with so many in the kernel it never
// overflows.
void RingThread::fill_queue() {
  while (!local_.empty() && in_kernel_ < kRingEntries) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) break;
    Operation* operation = local_.front();
    local_.pop_front();
    const bool moves =
        operation->kind == OperationKind::kRead || operation->kind == OperationKind::kWrite;
    const int slab = moves ? slabs_.entry_of(ring_, operation->buffer, operation->length) : -1;
    prepare_entry(sqe, *operation, slab);
    io_uring_sqe_set_data(sqe, operation);
    ++in_kernel_;
  }
}

// Handlers may push to local_; they never touch the ring.
unsigned RingThread::reap() {
  unsigned head = 0;
  unsigned count = 0;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++count;
    auto* const operation = static_cast<Operation*>(io_uring_cqe_get_data(cqe));
    if (operation == nullptr) {
      wake_armed_ = false;
      continue;
    }
    --in_kernel_;
    const bool paused = operation->kind == OperationKind::kPause && cqe->res == -ETIME;
    operation->handler->on_complete(*operation, paused ? 0 : cqe->res);
  }
  io_uring_cq_advance(&ring_, count);
  return count;
}

void RingThread::arm_wake() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) return;  // the queue is full, so the next wait returns by itself
  io_uring_prep_read(sqe, wake_descriptor_.get(), &wake_count_, sizeof wake_count_, 0);
  io_uring_sqe_set_data(sqe, nullptr);
  wake_armed_ = true;
}

}  // namespace lmkv
