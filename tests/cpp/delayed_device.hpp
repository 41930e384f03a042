// A device whose transfers wait for the test: proof of what is ordered after what.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "device/device.hpp"

namespace lmkv::test {

class DelayedDevice final : public Device {
 public:
  explicit DelayedDevice(SegmentTable table) : real_(make_host_device(std::move(table))) {}

  // From now on transfers are kept until release() or fail().
  void hold() {
    const std::lock_guard lock(mutex_);
    holding_ = true;
  }
  void release() {
    for (Transfer& transfer : take()) real_->submit(std::move(transfer));
  }
  void fail(const std::string& message) {
    for (Transfer& transfer : take()) transfer.done(Status::device(message));
  }
  [[nodiscard]] std::size_t held() {
    const std::lock_guard lock(mutex_);
    return kept_.size();
  }

  [[nodiscard]] std::shared_ptr<const Fence> fence(std::uintptr_t stream) override {
    return real_->fence(stream);
  }
  void submit(Transfer transfer) override {
    {
      const std::lock_guard lock(mutex_);
      if (holding_) {
        kept_.push_back(std::move(transfer));
        return;
      }
    }
    real_->submit(std::move(transfer));
  }
  [[nodiscard]] std::string pin(std::byte* begin, std::size_t bytes) override {
    return real_->pin(begin, bytes);
  }
  void unpin(std::byte* begin) override { real_->unpin(begin); }
  void stop() override { real_->stop(); }
  [[nodiscard]] std::string name() const override { return "delayed"; }

 private:
  std::vector<Transfer> take() {
    const std::lock_guard lock(mutex_);
    holding_ = false;
    return std::exchange(kept_, {});
  }

  std::mutex mutex_;
  bool holding_ = false;
  std::vector<Transfer> kept_;
  std::unique_ptr<Device> real_;
};

}  // namespace lmkv::test
