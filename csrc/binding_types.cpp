#include "binding_types.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <new>
#include <string_view>
#include <utility>
#include <variant>

#include "binding_policy.hpp"
#include "engine/bench_engine.hpp"

namespace lmkv::python {
namespace {

template <typename Tag>
Digest<Tag> digest_from(const std::string& bytes, std::string_view what) {
  if (bytes.size() != Digest<Tag>::kBytes) {
    throw ConfigError(std::string(what) + " must be 32 bytes, not " + std::to_string(bytes.size()));
  }
  Digest<Tag> digest;
  std::copy(bytes.begin(), bytes.end(), digest.bytes.begin());
  return digest;
}

std::vector<BlockId> blocks_from(const std::vector<std::uint32_t>& ids) {
  std::vector<BlockId> blocks(ids.size());
  std::transform(ids.begin(), ids.end(), blocks.begin(),
                 [](std::uint32_t id) { return BlockId{id}; });
  return blocks;
}

template <typename Enum, std::size_t N>
Enum one_of(const std::string& name, std::string_view setting,
            const std::array<std::pair<std::string_view, Enum>, N>& choices) {
  std::string known;
  for (const auto& [choice, value] : choices) {
    if (name == choice) return value;
    known += (known.empty() ? "" : ", ") + std::string(choice);
  }
  throw ConfigError(std::string(setting) + " must be one of " + known + ", not \"" + name + "\"");
}

IoEngineChoice io_engine_from(const std::string& name) {
  return one_of<IoEngineChoice, 3>(name, "io_engine",
                                   {{{"auto", IoEngineChoice::kAuto},
                                     {"io_uring", IoEngineChoice::kUring},
                                     {"threads", IoEngineChoice::kThreads}}});
}

DirectIoChoice direct_io_from(const std::string& name) {
  return one_of<DirectIoChoice, 3>(name, "direct_io",
                                   {{{"auto", DirectIoChoice::kAuto},
                                     {"on", DirectIoChoice::kOn},
                                     {"off", DirectIoChoice::kOff}}});
}

SharedChoice shared_from(const std::string& name) {
  return one_of<SharedChoice, 3>(name, "shared",
                                 {{{"auto", SharedChoice::kAuto},
                                   {"yes", SharedChoice::kShared},
                                   {"no", SharedChoice::kLocal}}});
}

TransferMode transfer_mode_from(const std::string& name, std::string_view setting) {
  return one_of<TransferMode, 4>(name, setting,
                                 {{{"auto", TransferMode::kAuto},
                                   {"copy_engine", TransferMode::kCopyEngine},
                                   {"kernel_staged", TransferMode::kKernelStaged},
                                   {"kernel_mapped", TransferMode::kKernelMapped}}});
}

TransferMode kernel_mode_from(const std::string& name, std::string_view setting) {
  return one_of<TransferMode, 2>(name, setting,
                                 {{{"kernel_staged", TransferMode::kKernelStaged},
                                   {"kernel_mapped", TransferMode::kKernelMapped}}});
}

std::vector<Segment> segments_from(const std::vector<SegmentTuple>& tuples) {
  std::vector<Segment> segments;
  segments.reserve(tuples.size());
  for (const auto& [base, stride, bytes] : tuples) segments.push_back({base, stride, bytes});
  return segments;
}

std::vector<std::string> roots_from(const RootsArgument& root) {
  if (const auto* one = std::get_if<std::string>(&root)) return {*one};
  return std::get<std::vector<std::string>>(root);
}

constexpr int kLongestTimeout = 86'400;
constexpr int kLongestAge = 10 * 366 * 86'400;

constexpr unsigned kMostThreadBlocks = 1024;  // more than any GPU has room for

UseTime use_time_from(std::optional<double> seconds) {
  const UseTime now = std::chrono::system_clock::now();
  // Far off, or not a number: use_stamp() would take it for now or for its oldest anyway.
  if (!seconds || !(std::abs(*seconds) < 1e10)) return now;
  return UseTime(
      std::chrono::duration_cast<UseTime::duration>(std::chrono::duration<double>(*seconds)));
}

// What the core calls an invalid argument is the caller's mistake.
template <typename F>
auto as_config_error(F&& call) {
  try {
    return call();
  } catch (const std::invalid_argument& error) {
    throw ConfigError(error.what());
  }
}

}  // namespace

ChunkKey key_from(const std::string& bytes) {
  return digest_from<struct ChunkKeyTag>(bytes, "a chunk's key");
}

std::vector<ChunkKey> keys_from(const std::vector<std::string>& keys) {
  std::vector<ChunkKey> converted;
  converted.reserve(keys.size());
  std::transform(keys.begin(), keys.end(), std::back_inserter(converted), key_from);
  return converted;
}

NamespaceDigest namespace_from(const std::string& bytes) {
  return digest_from<struct NamespaceDigestTag>(bytes, "a namespace");
}

Access access_from(const std::string& name) {
  return one_of<Access, 2>(name, "file_mode",
                           {{{"private", Access::kPrivate}, {"group", Access::kGroup}}});
}

RootReport report_root(const std::string& root, const std::string& io_engine,
                       const std::string& direct_io, const std::string& shared,
                       const std::string& file_mode) {
  const IoEngineChoice engine_choice = io_engine_from(io_engine);
  const DirectIoChoice direct_choice = direct_io_from(direct_io);
  const SharedChoice shared_choice = shared_from(shared);
  const Access access = access_from(file_mode);
  RootReport report;
  try {
    make_root(root, access);
    const RootProbe probe = probe_root(root, direct_choice, shared_choice);
    report.filesystem = probe.filesystem;
    report.shared = probe.is_shared();
    report.shared_reason = probe.shared_reason;
    report.direct_io = probe.caching == Caching::kDirect;
    report.direct_io_reason = probe.reason;
    const IoEngineSelection selection =
        start_io_engine(engine_choice, 1, probe.caching, probe.submission);
    report.io_engine = selection.engine->name();
    report.io_engine_reason = selection.reason;
  } catch (const std::runtime_error& error) {
    report.error = error.what();
  }
  return report;
}

std::size_t slab_bytes(std::size_t block_bytes, std::uint32_t blocks_per_chunk) {
  ChunkIdentity whole;
  whole.block_bytes = block_bytes;
  whole.block_count = blocks_per_chunk;
  return whole.file_bytes();
}

EngineOptions make_options(const RootsArgument& root, const std::string& namespace_digest,
                           std::uint32_t rank, const std::vector<SegmentTuple>& segments,
                           std::size_t block_count, std::uint32_t block_tokens,
                           std::uint32_t blocks_per_chunk, std::size_t host_memory,
                           const std::string& device, const std::string& io_engine,
                           const std::string& direct_io, unsigned io_threads,
                           std::size_t request_bytes, std::size_t load_depth,
                           std::size_t store_depth, const TransferOptions& transfer,
                           std::uint64_t capacity, double free_space_floor, double load_timeout,
                           const std::string& shared, const std::string& file_mode,
                           const std::string& eviction, double max_age,
                           const std::string& arena_directory, const RemoteOptions& remote) {
  EngineOptions options;
  options.roots = roots_from(root);
  options.namespace_digest = namespace_from(namespace_digest);
  options.rank = rank;
  options.segments = segments_from(segments);
  options.block_count = block_count;
  options.block_tokens = block_tokens;
  options.blocks_per_chunk = blocks_per_chunk;
  options.host_memory = host_memory;
  options.device = device;
  options.io_engine = io_engine_from(io_engine);
  options.direct_io = direct_io_from(direct_io);
  options.io_threads = io_threads;
  options.request_bytes = request_bytes;
  options.load_depth = load_depth;
  options.store_depth = store_depth;
  options.transfer = transfer;
  options.capacity = capacity;
  options.free_space_floor = free_space_floor;
  if (!(load_timeout >= 0 && load_timeout <= kLongestTimeout)) {
    throw ConfigError("load_timeout must be between 0 and " + std::to_string(kLongestTimeout) +
                      " seconds");
  }
  options.load_timeout = std::chrono::duration<double>(load_timeout);
  options.housekeeping.order = eviction_order_from(eviction);
  if (!(max_age >= 0 && max_age <= kLongestAge)) {
    throw ConfigError("max_age must be between 0 and " + std::to_string(kLongestAge) + " seconds");
  }
  options.housekeeping.max_age = std::chrono::seconds(static_cast<std::int64_t>(max_age));
  options.shared = shared_from(shared);
  options.access = access_from(file_mode);
  options.arena_directory = arena_directory;
  options.remote = remote;
  return options;
}

TransferOptions make_transfer_options(const std::string& mode, std::size_t gather_copy_engine_from,
                                      const std::string& gather_below,
                                      std::size_t scatter_copy_engine_from,
                                      const std::string& scatter_below, unsigned thread_blocks,
                                      std::size_t staging_bytes) {
  if (thread_blocks == 0 || thread_blocks > kMostThreadBlocks) {
    throw ConfigError("thread_blocks must be between 1 and " + std::to_string(kMostThreadBlocks));
  }
  TransferOptions options;
  options.mode = transfer_mode_from(mode, "transfer");
  options.gather = {gather_copy_engine_from, kernel_mode_from(gather_below, "gather_below")};
  options.scatter = {scatter_copy_engine_from, kernel_mode_from(scatter_below, "scatter_below")};
  options.thread_blocks = thread_blocks;
  options.staging_bytes = staging_bytes;
  return options;
}

namespace {

template <typename F>
std::unique_ptr<Engine> engine_or_config_error(F&& make) {
  try {
    return as_config_error(make);
  } catch (const DeviceError&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw ConfigError("host_memory: so much cannot be had");
  } catch (const std::runtime_error& error) {  // a machine or a directory that cannot do it
    throw ConfigError(error.what());
  }
}

}  // namespace

std::unique_ptr<Engine> make_engine(const EngineOptions& options) {
  return engine_or_config_error(
      [&] { return std::make_unique<Engine>(options, make_parts(options)); });
}

std::unique_ptr<Engine> make_measured_engine(const EngineOptions& options,
                                             std::shared_ptr<Faults> faults) {
  return engine_or_config_error([&] { return make_bench_engine(options, std::move(faults)); });
}

std::unique_ptr<Engine> make_engine_with_faults(const EngineOptions& options,
                                                std::shared_ptr<Faults> faults) {
  return engine_or_config_error([&] { return make_faulty_engine(options, std::move(faults)); });
}

std::shared_ptr<Faults> make_faults(const std::string& spec, std::uint64_t seed) {
  return as_config_error([&] { return std::make_shared<Faults>(parse_faults(spec), seed); });
}

void change_faults(Faults& faults, const std::string& spec) {
  as_config_error([&] { faults.change(parse_faults(spec)); });
}

std::unique_ptr<TransferBench> make_transfer_bench(const std::string& device,
                                                   const std::vector<SegmentTuple>& segments,
                                                   std::size_t host_bytes,
                                                   const TransferOptions& transfer) {
  return as_config_error([&] {
    return std::make_unique<TransferBench>(device, segments_from(segments), transfer, host_bytes);
  });
}

std::uintptr_t bench_address(const TransferBench& bench) {
  return reinterpret_cast<std::uintptr_t>(bench.host().data());
}

double run_transfers(TransferBench& bench, const std::string& direction,
                     const std::vector<std::vector<std::uint32_t>>& transfers,
                     std::uintptr_t stream) {
  const auto which = one_of<Direction, 2>(
      direction, "direction", {{{"gather", Direction::kGather}, {"scatter", Direction::kScatter}}});
  std::vector<std::vector<BlockId>> converted(transfers.size());
  std::transform(transfers.begin(), transfers.end(), converted.begin(), blocks_from);
  const pybind11::gil_scoped_release release;
  return as_config_error([&] { return bench.run(which, converted, stream).count(); });
}

std::uint64_t store_chunk(Engine& engine, const std::string& key, std::uint64_t token_begin,
                          const std::vector<std::uint32_t>& block_ids, std::uintptr_t stream,
                          std::optional<double> used_at) {
  const auto job = as_config_error([&] {
    return engine.store(key_from(key), token_begin, blocks_from(block_ids), stream,
                        use_time_from(used_at));
  });
  return job ? static_cast<std::uint64_t>(*job) : 0;
}

std::uint64_t load_chunks(Engine& engine, const std::vector<ChunkTuple>& chunks,
                          std::uintptr_t stream, std::optional<double> used_at) {
  std::vector<LoadChunk> loads;
  loads.reserve(chunks.size());
  for (const auto& [key, token_begin, block_count, first_block, block_ids] : chunks) {
    loads.push_back({key_from(key), token_begin, block_count, first_block, blocks_from(block_ids)});
  }
  return as_config_error([&] {
    const JobId job = engine.load(std::move(loads), stream, use_time_from(used_at));
    return static_cast<std::uint64_t>(job);
  });
}

void touch_chunks(Engine& engine, const std::vector<UsedTuple>& chunks,
                  std::optional<double> used_at) {
  std::vector<UsedChunk> used;
  used.reserve(chunks.size());
  for (const auto& [key, token_begin] : chunks) used.push_back({key_from(key), token_begin});
  engine.touch(used, use_time_from(used_at));
}

void cancel_load(Engine& engine, std::uint64_t job) { engine.cancel(JobId{job}); }

std::vector<pybind11::bytes> take_evicted(Engine& engine) {
  std::vector<pybind11::bytes> keys;
  for (const ChunkKey& key : engine.take_evicted()) {
    keys.emplace_back(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
  }
  return keys;
}

std::uint64_t job_number(const Completion& completion) {
  return static_cast<std::uint64_t>(completion.job);
}

bool drain_engine(Engine& engine, double timeout_s) {
  if (std::isnan(timeout_s)) throw ConfigError("timeout_s is not a number");
  return engine.drain(std::chrono::duration<double>(timeout_s));
}

bool close_engine(pybind11::object engine, double timeout_s) {
  if (std::isnan(timeout_s)) throw ConfigError("timeout_s is not a number");
  auto& closed = engine.cast<Engine&>();
  const std::chrono::duration<double> timeout(std::min<double>(timeout_s, kLongestTimeout));
  bool is_closed = false;
  {
    const pybind11::gil_scoped_release release;
    is_closed = closed.close(timeout);
  }
  // The kernel may still write to its memory: the object stays for as long as the process does.
  if (!is_closed) engine.inc_ref();
  return is_closed;
}

std::unique_ptr<Directory> make_directory(const RootsArgument& root,
                                          const std::string& namespace_digest,
                                          std::uint32_t ranks) {
  const std::vector<std::string> roots = roots_from(root);
  if (roots.empty()) throw ConfigError("no directory is named");
  if (ranks == 0) throw ConfigError("an engine has at least one rank");
  return std::make_unique<Directory>(roots, namespace_from(namespace_digest), ranks);
}

std::size_t lookup_keys(const Directory& directory, const std::vector<std::string>& keys) {
  const std::vector<ChunkKey> converted = keys_from(keys);
  const pybind11::gil_scoped_release release;
  return directory.lookup(converted);
}

std::vector<bool> present_keys(const Directory& directory, const std::vector<std::string>& keys) {
  const std::vector<ChunkKey> converted = keys_from(keys);
  const pybind11::gil_scoped_release release;
  return directory.present(converted, Until::kEnd);
}

std::unique_ptr<StripedLookup> make_lookup_service(const Directory& directory) {
  return std::make_unique<StripedLookup>(directory);
}

std::optional<std::size_t> lookup_within(StripedLookup& service,
                                         const std::vector<std::string>& keys, double patience_s) {
  const std::vector<ChunkKey> converted = keys_from(keys);
  const pybind11::gil_scoped_release release;
  return service.lookup(converted, StripedLookup::Seconds(patience_s));
}

std::optional<std::vector<bool>> present_within(StripedLookup& service,
                                                const std::vector<std::string>& keys,
                                                double patience_s) {
  const std::vector<ChunkKey> converted = keys_from(keys);
  const pybind11::gil_scoped_release release;
  return service.present(converted, StripedLookup::Seconds(patience_s));
}

}  // namespace lmkv::python
