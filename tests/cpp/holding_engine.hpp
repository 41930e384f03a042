// A disk that may hang: an engine in front of a real one that keeps what it is told to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "io/io_engine.hpp"

namespace lmkv::test {

class HoldingEngine final : public IoEngine {
 public:
  explicit HoldingEngine(std::unique_ptr<IoEngine> real) : real_(std::move(real)) {}
  ~HoldingEngine() override { release(); }

  // From now on operations of this kind are kept until release().
  void hold(OperationKind kind) {
    const std::lock_guard lock(mutex_);
    kinds_.push_back(kind);
  }
  // The first `count` of those that are kept, and no more: others still are.
  void release(std::size_t count) {
    std::vector<Operation*> first;
    {
      const std::lock_guard lock(mutex_);
      const auto end = kept_.begin() + static_cast<std::ptrdiff_t>(std::min(count, kept_.size()));
      first.assign(kept_.begin(), end);
      kept_.erase(kept_.begin(), end);
    }
    for (Operation* operation : first) real_->submit(*operation);
  }
  void release() {
    std::vector<Operation*> kept;
    {
      const std::lock_guard lock(mutex_);
      kinds_.clear();
      kept.swap(kept_);
    }
    for (Operation* operation : kept) real_->submit(*operation);
  }
  [[nodiscard]] std::size_t held() {
    const std::lock_guard lock(mutex_);
    return kept_.size();
  }

  void submit(Operation& operation) override {
    {
      const std::lock_guard lock(mutex_);
      if (std::ranges::find(kinds_, operation.kind) != kinds_.end()) {
        kept_.push_back(&operation);
        return;
      }
    }
    real_->submit(operation);
  }
  std::string register_memory(const SlabMemory& memory) override {
    return real_->register_memory(memory);
  }
  [[nodiscard]] std::string_view name() const override { return real_->name(); }

 private:
  std::mutex mutex_;
  std::vector<OperationKind> kinds_;
  std::vector<Operation*> kept_;
  std::unique_ptr<IoEngine> real_;
};

}  // namespace lmkv::test
