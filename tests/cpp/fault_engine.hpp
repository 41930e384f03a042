// Faults through the I/O seam: an engine in front of a real one that may answer for it.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include "io/io_engine.hpp"

namespace lmkv::test {

class FaultEngine final : public IoEngine {
 public:
  // Looks at an operation before it is executed. It may change it (say, make it shorter). A result
  // is delivered in the operation's place, on an I/O thread; none lets it through.
  using Fault = std::function<std::optional<int>(Operation&)>;

  FaultEngine(std::unique_ptr<IoEngine> real, Fault fault)
      : fault_(std::move(fault)), real_(std::move(real)) {}

  void submit(Operation& operation) override {
    Operation seen = operation;
    std::optional<int> result;
    {
      const std::lock_guard lock(mutex_);
      result = fault_(seen);
    }
    auto* const call = new Call{{}, operation, result};
    call->forwarded = seen;
    call->forwarded.handler = call;
    // An operation that fails by itself, harmlessly, carries the invented result to an I/O thread.
    if (result) {
      call->forwarded = Operation{};
      call->forwarded.kind = OperationKind::kClose;
      call->forwarded.handler = call;
    }
    real_->submit(call->forwarded);
  }

  std::string register_memory(const SlabMemory& memory) override {
    return real_->register_memory(memory);
  }
  [[nodiscard]] std::string_view name() const override { return real_->name(); }

 private:
  struct Call final : OperationHandler {
    Call(Operation forwarded_operation, Operation& original_operation,
         std::optional<int> invented_result)
        : forwarded(forwarded_operation), original(original_operation), invented(invented_result) {}
    void on_complete(Operation&, int result) override {
      const std::unique_ptr<Call> self(this);
      original.handler->on_complete(original, invented.value_or(result));
    }
    Operation forwarded;
    Operation& original;
    std::optional<int> invented;
  };

  std::mutex mutex_;
  Fault fault_;
  std::unique_ptr<IoEngine> real_;
};

}  // namespace lmkv::test
