// What was done to a disk: an engine in front of a real one that keeps every operation that changes
// something, with the bytes that were written and the time that it was under way.
#pragma once

#include <fcntl.h>

#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/io_engine.hpp"

namespace lmkv::test {

// One operation that succeeded. Moments number all submissions and completions in the order in
// which they were seen: one operation was over before another began if its completion has the
// smaller moment.
struct Step {
  OperationKind kind{};
  std::string path;    // below the root
  std::string target;  // of kRename
  int file = -1;       // which of the files that were made (kOpen), for all that goes by descriptor
  std::size_t offset = 0;
  std::vector<std::byte> bytes;  // as many as were written
  std::size_t length = 0;        // of kAllocate
  std::int64_t modified_ns = 0;
  std::size_t submitted = 0;
  std::size_t completed = 0;

  [[nodiscard]] bool is_data() const { return kind == OperationKind::kWrite; }
};

struct Trace {
  std::vector<Step> steps;  // as they were submitted
  std::size_t moments = 0;
  int files = 0;
};

// Thread-safe. Outlives the engines that write to it.
class Recorder {
 public:
  explicit Recorder(const std::string& root) : prefix_(root + "/") {}

  // What was done to a path below the root by others than the engine: a step that is over.
  void note(OperationKind kind, const std::string& path) {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_.emplace_back();
    entry.step.kind = kind;
    entry.step.path = below_root(path.c_str());
    entry.step.submitted = moments_++;
    entry.step.completed = moments_++;
    entry.succeeded = true;
  }

  [[nodiscard]] Trace trace() const {
    const std::lock_guard lock(mutex_);
    Trace trace{{}, moments_, files_};
    for (const Entry& entry : entries_) {
      if (entry.succeeded) trace.steps.push_back(entry.step);
    }
    return trace;
  }

 private:
  friend class RecordingEngine;
  struct Entry {
    Step step;
    bool succeeded = false;
  };

  static bool changes_the_disk(const Operation& operation) {
    switch (operation.kind) {
      case OperationKind::kOpen: return (operation.flags & O_CREAT) != 0;
      case OperationKind::kWrite:
      case OperationKind::kAllocate:
      case OperationKind::kSync:
      case OperationKind::kSetModified:
      case OperationKind::kRename:
      case OperationKind::kMakeDirectory:
      case OperationKind::kUnlink:
      case OperationKind::kRemoveDirectory: return true;
      default: return false;
    }
  }

  [[nodiscard]] std::string below_root(const char* path) const {
    if (path == nullptr) return {};
    const std::string_view whole(path);
    return std::string(whole.starts_with(prefix_) ? whole.substr(prefix_.size()) : whole);
  }

  // The number of the entry, or none for what changes nothing.
  std::size_t begin(const Operation& operation) {
    const std::lock_guard lock(mutex_);
    if (!changes_the_disk(operation)) {
      // Another file gets the number as soon as it is closed, which may be before we hear of it.
      if (operation.kind == OperationKind::kClose) descriptors_.erase(operation.descriptor);
      return kNone;
    }
    Step& step = entries_.emplace_back().step;
    step.kind = operation.kind;
    step.path = below_root(operation.path);
    step.target = below_root(operation.target);
    step.offset = operation.offset;
    step.length = operation.length;
    step.modified_ns = operation.modified_ns;
    const auto opened = descriptors_.find(operation.descriptor);
    if (opened != descriptors_.end()) step.file = opened->second;
    if (step.is_data()) step.bytes.assign(operation.buffer, operation.buffer + operation.length);
    step.submitted = moments_++;
    return entries_.size() - 1;
  }

  void end(std::size_t number, int result) {
    if (number == kNone) return;
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[number];
    entry.step.completed = moments_++;
    entry.succeeded = result >= 0;
    if (!entry.succeeded) return;
    if (entry.step.kind == OperationKind::kOpen) descriptors_[result] = entry.step.file = files_++;
    if (entry.step.is_data()) entry.step.bytes.resize(static_cast<std::size_t>(result));
  }

  static constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

  const std::string prefix_;
  mutable std::mutex mutex_;  // guards all below
  std::vector<Entry> entries_;
  std::map<int, int> descriptors_;  // open ones, and their files
  std::size_t moments_ = 0;
  int files_ = 0;
};

class RecordingEngine final : public IoEngine {
 public:
  RecordingEngine(std::unique_ptr<IoEngine> real, Recorder& recorder)
      : recorder_(recorder), real_(std::move(real)) {}

  void submit(Operation& operation) override {
    auto* const call = new Call(recorder_, operation, recorder_.begin(operation));
    call->forwarded.handler = call;
    real_->submit(call->forwarded);
  }

  std::string register_memory(const SlabMemory& memory) override {
    return real_->register_memory(memory);
  }
  [[nodiscard]] std::string_view name() const override { return real_->name(); }

 private:
  struct Call final : OperationHandler {
    Call(Recorder& to, Operation& submitted, std::size_t entry)
        : recorder(to), forwarded(submitted), original(submitted), number(entry) {}
    void on_complete(Operation&, int result) override {
      const std::unique_ptr<Call> self(this);
      recorder.end(number, result);
      original.handler->on_complete(original, result);
    }
    Recorder& recorder;
    Operation forwarded;
    Operation& original;
    const std::size_t number;
  };

  Recorder& recorder_;
  std::unique_ptr<IoEngine> real_;
};

}  // namespace lmkv::test
