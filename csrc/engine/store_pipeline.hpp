// Stores: gather -> seal -> write, and on to the remote tier.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_context.hpp"
#include "engine/load_pipeline.hpp"
#include "engine/tier_copies.hpp"
#include "store/use_stamp.hpp"

namespace lmkv {

class StorePipeline {
 public:
  // `loads` go first wherever both want something.
  StorePipeline(EngineContext& context, LoadPipeline& loads, TierCopies& copies);

  // Engine's thread. Empty when the store is dropped: see Engine::store.
  std::optional<JobId> begin(const ChunkKey& key, std::uint64_t token_begin,
                             std::vector<BlockId> blocks, std::uintptr_t stream, UseTime used_at);

 private:
  struct Job;

  [[nodiscard]] bool may_begin(const Job& job);
  [[nodiscard]] bool has_share(const Root& root) const;
  void gathered(std::shared_ptr<Job> job, Status status);
  void write(std::shared_ptr<Job> job);
  void note_health(const Job& job, const Status& status, FileWrite::Outcome outcome);
  void count(const Job& job, const Status& status, FileWrite::Outcome outcome);
  void written(const std::shared_ptr<Job>& job, const Status& status, FileWrite::Outcome outcome);
  void end(const std::shared_ptr<Job>& job, const std::string& error);

  EngineContext& context_;
  LoadPipeline& loads_;
  TierCopies& copies_;
  // Of all stores, and of one root's: a disk that hangs must not have all slabs.
  std::size_t most_slabs_;
  std::size_t most_slabs_of_a_root_;
};

}  // namespace lmkv
