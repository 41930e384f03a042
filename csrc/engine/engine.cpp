#include "engine/engine.hpp"

#include <algorithm>
#include <utility>

namespace lmkv {

Engine::Engine(const EngineOptions& options, EngineParts parts)
    : context_(options, std::move(parts)),
      copies_(context_),
      loads_(context_, copies_),
      stores_(context_, loads_, copies_),
      trials_(context_, loads_) {}

Engine::~Engine() {
  // False only for a time that overflows: there is none.
  while (!close(std::chrono::hours(1))) continue;
}

std::optional<JobId> Engine::store(const ChunkKey& key, std::uint64_t token_begin,
                                   std::vector<BlockId> blocks, std::uintptr_t stream,
                                   UseTime used_at) {
  return stores_.begin(key, token_begin, std::move(blocks), stream, used_at);
}

JobId Engine::load(std::vector<LoadChunk> chunks, std::uintptr_t stream, UseTime used_at) {
  return loads_.begin(std::move(chunks), stream, used_at);
}

void Engine::cancel(JobId load) { loads_.cancel(load); }

void Engine::touch(const std::vector<UsedChunk>& chunks, UseTime used_at) {
  for (const UsedChunk& chunk : chunks) {
    Root* root = context_.roots->of(chunk.key);
    if (root == nullptr || root->loads.is_out()) continue;
    root->touch(chunk.key, use_stamp(used_at, chunk.token_begin));
  }
}

std::vector<Completion> Engine::poll() {
  loads_.give_up_late();
  loads_.start_arrived();
  loads_.start_waiting();  // another engine may have given a slab back
  copies_.begin_held();
  trials_.begin_due();
  return context_.jobs.poll();
}

std::vector<ChunkKey> Engine::take_evicted() {
  std::vector<ChunkKey> all;
  for (Root* root : context_.roots->usable()) {
    const std::vector<ChunkKey> keys = root->take_evicted();
    all.insert(all.end(), keys.begin(), keys.end());
  }
  return all;
}

bool Engine::drain(std::chrono::duration<double> timeout) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::duration<double> kLook = std::chrono::milliseconds(5);
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::min<std::chrono::duration<double>>(
                                               timeout, std::chrono::hours(24 * 365)));
  for (;;) {
    // What another brings to memory is noticed by nobody else.
    loads_.start_arrived();
    loads_.start_waiting();
    copies_.begin_held();
    const std::chrono::duration<double> left = deadline - Clock::now();
    if (context_.jobs.wait_idle(std::min(left, kLook))) return true;
    if (left <= kLook) return false;
  }
}

bool Engine::close(std::chrono::duration<double> timeout) {
  using Clock = std::chrono::steady_clock;
  if (stopped_) return true;
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout);
  const auto left = [&] { return std::chrono::duration<double>(deadline - Clock::now()); };
  context_.closed = true;
  loads_.close();
  for (Tier* tier : context_.tiers()) tier->begin_shutdown();
  bool is_idle = true;
  for (Tier* tier : context_.tiers()) is_idle = tier->wait_idle(left()) && is_idle;
  // What the device still holds ends by itself: a gather finds the files shut down.
  if (!context_.jobs.wait_idle(left()) || !is_idle) return false;
  // Its thread may still be on the way back from the callback that ended the last job.
  context_.device->stop();
  for (Root* root : context_.roots->usable()) root->stop_housekeeping();
  if (context_.remote_root != nullptr) context_.remote_root->stop_housekeeping();
  stopped_ = true;
  return true;
}

std::map<std::string, std::uint64_t> Engine::stats() const {
  std::map<std::string, std::uint64_t> all = context_.stats.snapshot();
  all.merge(context_.roots->stats());
  add_remote_stats(all);
  const SlabCounts slabs = context_.pool->counts();
  all["slabs_total"] = slabs.total;
  all["slabs_free"] = slabs.free;
  all["slabs_in_use"] = slabs.in_use;
  all["slabs_cached"] = slabs.cached;
  all["slabs_abandoned"] = context_.abandoned();
  all["unpinned_slabs"] = context_.pool->pin_error().empty() ? 0 : slabs.total;
  all["device_lost"] = context_.device->failure().empty() ? 0 : 1;
  all["reading_microseconds"] = context_.reading.microseconds();
  all["writing_microseconds"] = context_.writing.microseconds();
  all["checksum_microseconds"] = context_.checksum_ns / 1000;
  all["jobs_in_flight"] = context_.jobs.in_flight();
  return all;
}

void Engine::add_remote_stats(std::map<std::string, std::uint64_t>& all) const {
  if (context_.options.remote.name.empty()) return;
  const Tier* const remote = context_.remote.get();
  all["loads_out_of_service"] += remote == nullptr || remote->loads.is_out() ? 1 : 0;
  all["stores_out_of_service"] += remote == nullptr || remote->stores.is_out() ? 1 : 0;
  if (context_.remote_orders != nullptr) context_.remote_orders->add_stats(all);
  if (context_.remote_root == nullptr) return;
  std::map<std::string, std::uint64_t> of_root;
  context_.remote_root->add_stats(of_root);
  for (const auto& [name, value] : of_root) all.try_emplace("remote_" + name, value);
}

void Engine::add_remote_info(std::map<std::string, std::string>& all) const {
  all["remote"] = context_.options.remote.name;
  const std::string name = "root" + std::to_string(context_.options.roots.size());
  if (!context_.remote_error.empty()) all[name + "_error"] = context_.remote_error;
  if (context_.remote == nullptr) return;
  const auto add = [&](const std::string& what, const std::string& why) {
    if (!why.empty()) all[name + what] = why;
  };
  add("_loads_out", context_.remote->loads.reason());
  add("_stores_out", context_.remote->stores.reason());
}

std::map<std::string, std::string> Engine::info() const {
  std::map<std::string, std::string> all = context_.device->info();
  all.merge(context_.roots->info());
  add_remote_info(all);
  all["device_failure"] = context_.device->failure();
  all["pin_error"] = context_.pool->pin_error();
  all["host_memory"] = context_.pool->info();
  all["arena_error"] = context_.arena_error;
  all["arena_slab_bytes"] = std::to_string(context_.pool->shared_slab_bytes());
  all["block_bytes"] = std::to_string(context_.table.block_bytes());
  all["segments"] = std::to_string(context_.table.segments().size());
  return all;
}

std::vector<std::size_t> Engine::roots_out_of_service() const {
  std::vector<std::size_t> out = context_.roots->out_of_service();
  const Tier* const remote = context_.remote.get();
  const bool is_out = remote == nullptr || remote->loads.is_out();
  if (!context_.options.remote.name.empty() && is_out) out.push_back(context_.options.roots.size());
  return out;
}

}  // namespace lmkv
