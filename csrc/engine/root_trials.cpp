#include "engine/root_trials.hpp"

#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "store/chunk_format.hpp"

namespace lmkv {
namespace {

// Whether `file` is that chunk, whole.
bool is_sound(std::span<const std::byte> file, const ChunkKey& key) {
  ChunkIdentity found;
  return read_identity(file, found) == ChunkFault::kNone && found.key == key &&
         found.file_bytes() == file.size() && verify_chunk(file, found) == ChunkFault::kNone;
}

}  // namespace

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
  request.done = [this, &tier, file, filling = std::move(filling)](const Status& status) mutable {
    // Whatever is there, and if it is nothing: the tier has answered. But what comes from a remote
    // one over a network that damages it is no answer.
    const bool is_remote = &tier == context_.remote_orders;
    if (status.error_number() != 0) {
      tier.loads.failed(status.message());
    } else if (is_remote && status.is_ok() &&
               !is_sound(filling->bytes().first(file.bytes), file.key)) {
      tier.trial_chunk.was_bad();
      tier.loads.failed("what it has arrives damaged");
    } else if (status.kind() != StatusKind::kCancelled) {
      if (is_remote && status.is_ok()) tier.damaged = 0;
      tier.loads.succeeded();
    }
    if (status.kind() == StatusKind::kUnsettled) context_.abandon(std::move(*filling));
    filling.reset();
    loads_.start_waiting();
  };
  tier.read(std::move(request));
}

}  // namespace lmkv
