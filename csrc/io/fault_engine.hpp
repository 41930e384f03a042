// Faults through the I/O seam: an engine in front of a real one that has the faults it is told to.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "io/fault_spec.hpp"
#include "io/io_engine.hpp"

namespace lmkv {

// Which faults there are to be from now on, and which there were: shared by an engine and whoever
// looks on. Thread-safe; nothing here blocks.
class Faults {
 public:
  // Equal seeds, and operations that are submitted in an equal order, make equal faults.
  explicit Faults(FaultSpec spec = {}, std::uint64_t seed = 0);
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

  // For operations that are submitted from now on.
  void change(FaultSpec spec);
  // Lets what hangs go on. Engine::close() waits for it: first change() to a spec without hangs.
  void release();

  [[nodiscard]] std::size_t hanging() const;
  // What really happened, by "operation.kind", as in "read.eio".
  [[nodiscard]] std::map<std::string, std::uint64_t> counts() const;
  // Of one kind, in operations of every kind.
  [[nodiscard]] std::uint64_t count(FaultKind kind) const;

 private:
  friend class FaultEngine;

  // At most one fault of each sort for one operation: the first in the spec that hits it.
  struct Draw {
    std::optional<Fault> outcome;
    std::optional<Fault> timing;
    std::uint64_t number = 0;  // for whatever else is left to chance
  };
  [[nodiscard]] Draw draw(const Operation& operation);
  void note(const Operation& operation, FaultKind kind);
  [[nodiscard]] std::uint64_t releases() const;

  mutable std::mutex mutex_;      // never held across an operation or a callback
  std::condition_variable wake_;  // the engines' timers
  FaultSpec spec_;                // guarded by mutex_, as all below
  std::mt19937_64 random_;
  std::map<std::pair<OperationKind, FaultKind>, std::uint64_t> counts_;
  std::uint64_t releases_ = 0;
  std::size_t hanging_ = 0;
};

// `real`, with faults. Whatever its faults, every operation is completed exactly once, on a thread
// of `real`: what is delayed or hangs waits in a list, which the destructor empties. One more
// thread keeps the time. Bears the name of `real`.
std::unique_ptr<IoEngine> make_fault_engine(std::unique_ptr<IoEngine> real,
                                            std::shared_ptr<Faults> faults);

}  // namespace lmkv
