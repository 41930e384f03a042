// Paged KV in host memory: the KV cache of engines that run on the CPU.

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "common/background_thread.hpp"
#include "device/device.hpp"
#include "device/host_copy.hpp"
#include "device/host_stream.hpp"

namespace lmkv {
namespace {

class HostDevice final : public Device {
 public:
  explicit HostDevice(SegmentTable table) : table_(std::move(table)) {}
  ~HostDevice() override { HostDevice::stop(); }

  void start() override {
    thread_ = std::thread([this] { run(); });
  }

  void stop() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  // An engine on the CPU has no stream (0): its forward pass is over when it submits.
  [[nodiscard]] std::shared_ptr<const Fence> fence(std::uintptr_t stream) override {
    return stream == 0 ? nullptr : HostStream::record(stream);
  }

  void submit(Transfer transfer) override {
    {
      const std::lock_guard lock(mutex_);
      ++unfinished_;
    }
    if (transfer.after == nullptr) return make_ready(std::move(transfer));
    const auto after =
        std::static_pointer_cast<const HostEvent>(std::exchange(transfer.after, nullptr));
    after->then([this, transfer = std::move(transfer)] { make_ready(transfer); });
  }

  [[nodiscard]] std::string pin(std::byte*, std::size_t) override { return {}; }
  void unpin(std::byte*) override {}
  [[nodiscard]] std::string failure() const override { return {}; }

  [[nodiscard]] std::map<std::string, std::string> info() const override {
    return {{"device", "host"},
            {"gather", "memory_copy"},
            {"gather_reason", "the KV cache is in host memory"},
            {"scatter", "memory_copy"},
            {"scatter_reason", "the KV cache is in host memory"}};
  }

 private:
  void make_ready(Transfer transfer) {
    // Notifies with the lock: once stop() can see that nothing is left, this may be gone.
    const std::lock_guard lock(mutex_);
    (transfer.direction == Direction::kScatter ? scatters_ : gathers_)
        .push_back(std::move(transfer));
    wake_.notify_all();
  }

  void run() {
    become_background_thread("lmkv-copy");
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] {
        return !scatters_.empty() || !gathers_.empty() || (stopping_ && unfinished_ == 0);
      });
      std::deque<Transfer>& queue = scatters_.empty() ? gathers_ : scatters_;
      if (queue.empty()) return;
      const Transfer transfer = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      copy_blocks_on_host(transfer, table_);
      transfer.done(Status::ok());
      lock.lock();
      --unfinished_;
    }
  }

  const SegmentTable table_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Transfer> scatters_;  // guarded by mutex_, as all below; their fences are reached
  std::deque<Transfer> gathers_;
  std::size_t unfinished_ = 0;  // transfers, those that wait for a fence included
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace

std::unique_ptr<Device> make_host_device(SegmentTable table) {
  return std::make_unique<HostDevice>(std::move(table));
}

}  // namespace lmkv
