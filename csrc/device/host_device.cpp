// Paged KV in host memory: the KV cache of engines that run on the CPU.

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "common/background_thread.hpp"
#include "device/device.hpp"

namespace lmkv {
namespace {

// The engine's thread has finished its forward pass when it submits: there is nothing to wait for.
class HostDevice final : public Device {
 public:
  explicit HostDevice(SegmentTable table) : table_(std::move(table)), thread_([this] { run(); }) {}

  ~HostDevice() override { HostDevice::stop(); }

  void stop() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  [[nodiscard]] std::shared_ptr<const Fence> fence(std::uintptr_t) override { return nullptr; }

  void submit(Transfer transfer) override {
    {
      const std::lock_guard lock(mutex_);
      (transfer.direction == Direction::kScatter ? scatters_ : gathers_)
          .push_back(std::move(transfer));
    }
    wake_.notify_one();
  }

  [[nodiscard]] std::string pin(std::byte*, std::size_t) override { return {}; }
  void unpin(std::byte*) override {}
  [[nodiscard]] std::string name() const override { return "host"; }

 private:
  void run() {
    become_background_thread("lmkv-copy");
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || !scatters_.empty() || !gathers_.empty(); });
      std::deque<Transfer>& queue = scatters_.empty() ? gathers_ : scatters_;
      if (queue.empty()) return;
      const Transfer transfer = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      copy(transfer);
      transfer.done(Status::ok());
      lock.lock();
    }
  }

  void copy(const Transfer& transfer) const {
    std::byte* host = transfer.host;
    for (const BlockId block : transfer.blocks) {
      for (const Segment& segment : table_.segments()) {
        const std::size_t offset = static_cast<std::size_t>(block) * segment.block_stride;
        auto* const paged = reinterpret_cast<std::byte*>(segment.base + offset);
        if (transfer.direction == Direction::kGather) {
          std::memcpy(host, paged, segment.bytes);
        } else {
          std::memcpy(paged, host, segment.bytes);
        }
        host += segment.bytes;
      }
    }
  }

  const SegmentTable table_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Transfer> scatters_;  // guarded by mutex_, as the two below
  std::deque<Transfer> gathers_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace

std::unique_ptr<Device> make_host_device(SegmentTable table) {
  return std::make_unique<HostDevice>(std::move(table));
}

}  // namespace lmkv
