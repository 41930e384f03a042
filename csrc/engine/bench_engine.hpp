// Engines for measurements and soaks: one whose device copies nothing, so that only files and
// checksums take time, and one whose disk has faults.
#pragma once

#include <memory>

#include "engine/engine.hpp"
#include "io/fault_engine.hpp"

namespace lmkv {

// For `lmkv bench io`. Slabs are full of random bytes from the start, which every store makes
// different from all before, so that no disk can make little of them. Without faults where `faults`
// is null. Throws as make_parts does.
std::unique_ptr<Engine> make_bench_engine(const EngineOptions& options,
                                          std::shared_ptr<Faults> faults = nullptr);

// An engine in all else as any other. Closing it waits for what hangs: see Faults::release().
std::unique_ptr<Engine> make_faulty_engine(const EngineOptions& options,
                                           std::shared_ptr<Faults> faults);

}  // namespace lmkv
