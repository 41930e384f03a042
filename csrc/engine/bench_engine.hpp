// An engine whose device copies nothing, so that only files and checksums take time.
#pragma once

#include <memory>

#include "engine/engine.hpp"

namespace lmkv {

// For `lmkv bench io`. Slabs are full of random bytes from the start, which every store makes
// different from all before, so that no disk can make little of them. Throws as make_parts does.
std::unique_ptr<Engine> make_bench_engine(const EngineOptions& options);

}  // namespace lmkv
