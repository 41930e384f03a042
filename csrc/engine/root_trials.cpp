#include "engine/root_trials.hpp"

#include <memory>
#include <optional>
#include <utility>

namespace lmkv {

void RootTrials::begin_due(Clock::time_point now) {
  if (context_.closed) return;
  for (Tier* tier : context_.tiers()) {
    if (!tier->loads.is_trial_due(now) || tier->is_reading()) continue;
    std::optional<Slab> slab = context_.pool->try_acquire();
    if (!slab) return;
    if (tier->loads.admits(now)) begin(*tier, std::move(*slab));
  }
}

void RootTrials::begin(Tier& tier, Slab slab) {
  const TrialChunk::File file = tier.trial_chunk.file();
  auto filling = std::make_shared<Slab>(std::move(slab));
  Tier::Read request;
  request.key = file.key;
  request.buffer = filling->bytes().data();
  request.bytes = file.bytes;
  request.done = [this, &tier, filling = std::move(filling)](const Status& status) mutable {
    // Whatever is there, and if it is nothing: the tier has answered.
    if (status.error_number() != 0) {
      tier.loads.failed(status.message());
    } else if (status.kind() != StatusKind::kCancelled) {
      tier.loads.succeeded();
    }
    filling.reset();
    loads_.start_waiting();
  };
  tier.read(std::move(request));
}

}  // namespace lmkv
