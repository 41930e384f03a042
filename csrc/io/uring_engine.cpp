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

#include <atomic>
#include <cstring>
#include <vector>

#include "io/ring_thread.hpp"

namespace lmkv {
namespace {

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
    // These may wait for the filesystem's journal or a server: a ring does not wait with them.
    const bool blocks =
        operation.kind == OperationKind::kSetModified || operation.kind == OperationKind::kSetMode;
    if (blocks) return blocking_->submit(operation);
    // What a handler submits stays on its ring: no wake-up, and one file's operations together.
    for (const std::unique_ptr<RingThread>& ring : rings_) {
      if (ring.get() == RingThread::current()) return ring->submit(operation);
    }
    const std::size_t turn = next_.fetch_add(1, std::memory_order_relaxed);
    rings_[turn % rings_.size()]->submit(operation);
  }

  std::string register_memory(const SlabMemory& memory) override {
    for (const std::unique_ptr<RingThread>& ring : rings_) {
      if (const int error = ring->register_memory(memory); error < 0) {
        return std::string("io_uring registers no buffers: ") + std::strerror(-error);
      }
    }
    return {};
  }

  [[nodiscard]] std::string_view name() const override { return "io_uring"; }

  [[nodiscard]] std::map<std::string, std::string> info() const override {
    return {{"ring", rings_.front()->setup()},
            {"registered_buffers", rings_.front()->slabs_in_words()}};
  }

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
