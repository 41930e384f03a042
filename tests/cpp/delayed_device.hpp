// A device whose transfers wait for the test: proof of what is ordered after what.
#pragma once

#include <functional>
#include <map>
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
  void place(std::byte* begin, std::size_t bytes) override { real_->place(begin, bytes); }
  [[nodiscard]] std::string pin(std::byte* begin, std::size_t bytes) override {
    return real_->pin(begin, bytes);
  }
  void unpin(std::byte* begin) override { real_->unpin(begin); }
  // From now on the device is lost, for this reason.
  void lose(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    failure_ = reason;
  }

  void start() override { real_->start(); }
  void stop() override { real_->stop(); }
  [[nodiscard]] std::string failure() const override {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  [[nodiscard]] std::map<std::string, std::string> info() const override { return real_->info(); }

 private:
  std::vector<Transfer> take() {
    const std::lock_guard lock(mutex_);
    holding_ = false;
    return std::exchange(kept_, {});
  }

  mutable std::mutex mutex_;
  std::string failure_;
  bool holding_ = false;
  std::vector<Transfer> kept_;
  std::unique_ptr<Device> real_;
};

}  // namespace lmkv::test
