// Between Python's types and the core's: what bindings.cpp binds where the two differ.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "engine/engine.hpp"
#include "engine/transfer_bench.hpp"
#include "io/fault_engine.hpp"
#include "store/directory.hpp"
#include "store/striped_lookup.hpp"

namespace lmkv::python {

// A setting or an argument that cannot work; ValueError's child in Python.
class ConfigError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of 32 bytes; throw ConfigError.
ChunkKey key_from(const std::string& bytes);
std::vector<ChunkKey> keys_from(const std::vector<std::string>& keys);
NamespaceDigest namespace_from(const std::string& bytes);
// "private" or "group"; throws ConfigError.
Access access_from(const std::string& name);

struct RootReport {
  std::string filesystem;
  bool shared = false;
  std::string shared_reason;
  std::string io_engine;
  std::string io_engine_reason;
  bool direct_io = false;
  std::string direct_io_reason;
  std::string error;
};
RootReport report_root(const std::string& root, const std::string& io_engine,
                       const std::string& direct_io, const std::string& shared,
                       const std::string& file_mode);

std::size_t slab_bytes(std::size_t block_bytes, std::uint32_t blocks_per_chunk);

TransferOptions make_transfer_options(const std::string& mode, std::size_t gather_copy_engine_from,
                                      const std::string& gather_below,
                                      std::size_t scatter_copy_engine_from,
                                      const std::string& scatter_below, unsigned thread_blocks,
                                      std::size_t staging_bytes);

using RootsArgument = std::variant<std::string, std::vector<std::string>>;  // one or several
using SegmentTuple = std::tuple<std::uintptr_t, std::size_t, std::size_t>;
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
                           const std::string& arena_directory, const RemoteOptions& remote);
std::unique_ptr<Engine> make_engine(const EngineOptions& options);
// Without faults where there are none.
std::unique_ptr<Engine> make_measured_engine(const EngineOptions& options,
                                             std::shared_ptr<Faults> faults);
std::unique_ptr<Engine> make_engine_with_faults(const EngineOptions& options,
                                                std::shared_ptr<Faults> faults);

std::shared_ptr<Faults> make_faults(const std::string& spec, std::uint64_t seed);
void change_faults(Faults& faults, const std::string& spec);

std::unique_ptr<TransferBench> make_transfer_bench(const std::string& device,
                                                   const std::vector<SegmentTuple>& segments,
                                                   std::size_t host_bytes,
                                                   const TransferOptions& transfer);
std::uintptr_t bench_address(const TransferBench& bench);
// Seconds. Releases the GIL.
double run_transfers(TransferBench& bench, const std::string& direction,
                     const std::vector<std::vector<std::uint32_t>>& transfers,
                     std::uintptr_t stream);

// `used_at`: seconds since the epoch; none: now.
std::uint64_t store_chunk(Engine& engine, const std::string& key, std::uint64_t token_begin,
                          const std::vector<std::uint32_t>& block_ids, std::uintptr_t stream,
                          std::optional<double> used_at);
// key, token_begin, block_count, first_block, block_ids
using ChunkTuple = std::tuple<std::string, std::uint64_t, std::uint32_t, std::uint32_t,
                              std::vector<std::uint32_t>>;
std::uint64_t load_chunks(Engine& engine, const std::vector<ChunkTuple>& chunks,
                          std::uintptr_t stream, std::optional<double> used_at);
// key, token_begin
using UsedTuple = std::tuple<std::string, std::uint64_t>;
void touch_chunks(Engine& engine, const std::vector<UsedTuple>& chunks,
                  std::optional<double> used_at);
std::vector<pybind11::bytes> take_evicted(Engine& engine);
std::uint64_t job_number(const Completion& completion);
void cancel_load(Engine& engine, std::uint64_t job);
bool drain_engine(Engine& engine, double timeout_s);
// Where it is not closed in time the object is kept for ever. Releases the GIL.
bool close_engine(pybind11::object engine, double timeout_s);

std::unique_ptr<Directory> make_directory(const RootsArgument& root,
                                          const std::string& namespace_digest, std::uint32_t ranks);
// Both release the GIL while they ask the filesystem.
std::size_t lookup_keys(const Directory& directory, const std::vector<std::string>& keys);
std::vector<bool> present_keys(const Directory& directory, const std::vector<std::string>& keys);

std::unique_ptr<StripedLookup> make_lookup_service(const Directory& directory);
// Both release the GIL while they wait.
std::optional<std::size_t> lookup_within(StripedLookup& service,
                                         const std::vector<std::string>& keys, double patience_s);
std::optional<std::vector<bool>> present_within(StripedLookup& service,
                                                const std::vector<std::string>& keys,
                                                double patience_s);

}  // namespace lmkv::python
