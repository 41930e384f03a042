#include "engine/root_trials.hpp"

#include <memory>
#include <optional>
#include <utility>

namespace lmkv {

void RootTrials::begin_due(Clock::time_point now) {
  if (context_.closed) return;
  for (Root* root : context_.roots->usable()) {
    if (!root->loads.is_trial_due(now) || root->files().is_reading()) continue;
    std::optional<Slab> slab = context_.pool->try_acquire();
    if (!slab) return;
    if (root->loads.admits(now)) begin(*root, std::move(*slab));
  }
}

void RootTrials::begin(Root& root, Slab slab) {
  const TrialChunk::File file = root.trial_chunk.file();
  auto filling = std::make_shared<Slab>(std::move(slab));
  FileRead request;
  request.path = root.paths.chunk(file.key);
  request.buffer = filling->bytes().data();
  request.bytes = file.bytes;
  request.done = [this, &root, filling = std::move(filling)](const Status& status) mutable {
    // Whatever is there, and if it is nothing: the directory has answered.
    if (status.error_number() != 0) {
      root.loads.failed(status.message());
    } else if (status.kind() != StatusKind::kCancelled) {
      root.loads.succeeded();
    }
    filling.reset();
    loads_.start_waiting();
  };
  root.files().read(std::move(request));
}

}  // namespace lmkv
