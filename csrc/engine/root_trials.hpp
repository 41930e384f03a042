// How a directory, or the remote tier, comes back into service by itself.
#pragma once

#include <chrono>

#include "engine/engine_context.hpp"
#include "engine/load_pipeline.hpp"

namespace lmkv {

// Whoever looks chunks up asks nothing of a directory whose loads are out of service: it may hang.
// So no load would ever find that it works again. One chunk of it is read instead, when its time is
// over (RootHealth), on its own threads; the same goes for the remote tier. A read that is still
// under way is such a trial already.
class RootTrials {
 public:
  using Clock = std::chrono::steady_clock;

  RootTrials(EngineContext& context, LoadPipeline& loads) : context_(context), loads_(loads) {}

  // Engine's thread. Never blocks. Where no slab is free it is left for the next call.
  void begin_due(Clock::time_point now = Clock::now());

 private:
  void begin(Tier& tier, Slab slab);

  EngineContext& context_;
  LoadPipeline& loads_;
};

}  // namespace lmkv
