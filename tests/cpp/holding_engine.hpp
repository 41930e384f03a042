// A disk that may hang: an engine in front of a real one that keeps what it is told to.
#pragma once

#include <algorithm>
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
