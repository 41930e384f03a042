// What an engine is made from: options checked, device, I/O engine and root found.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/engine_options.hpp"
#include "store/chunk_format.hpp"
#include "store/directory.hpp"

namespace lmkv {

std::size_t slab_bytes_of(const EngineOptions& options) {
  const SegmentTable table(options.segments);
  return kHeaderBytes + round_up_to_page(options.blocks_per_chunk * table.block_bytes());
}

namespace {

constexpr std::size_t kMaxRequestBytes = 1 << 30;  // io_uring's lengths have 32 bits

void check(const EngineOptions& options) {
  if (options.roots.empty()) throw std::invalid_argument("no directory is named");
  for (const std::string& root : options.roots) {
    if (std::ranges::count(options.roots, root) > 1) {
      throw std::invalid_argument("a directory is named twice: " + root);
    }
  }
  if (options.blocks_per_chunk == 0 || options.blocks_per_chunk > kMaxBlocksPerChunk) {
    throw std::invalid_argument("a chunk has 1 to " + std::to_string(kMaxBlocksPerChunk) +
                                " blocks, not " + std::to_string(options.blocks_per_chunk));
  }
  if (options.request_bytes == 0 || options.request_bytes % kPageBytes != 0 ||
      options.request_bytes > kMaxRequestBytes) {
    throw std::invalid_argument("request_bytes must be a multiple of 4096, and 1 GiB at most");
  }
  // One slab for a load and one for a store: with fewer, either would wait for the other.
  const std::size_t slab_bytes = slab_bytes_of(options);
  if (options.host_memory / slab_bytes < 2) {
    throw std::invalid_argument("host_memory holds fewer than two chunks of " +
                                std::to_string(slab_bytes) + " bytes");
  }
  if (options.capacity != 0 && options.capacity / slab_bytes < 2) {
    throw std::invalid_argument("capacity holds fewer than two chunks of " +
                                std::to_string(slab_bytes) + " bytes");
  }
  const RemoteOptions& remote = options.remote;
  if (!remote.directory.empty() && std::ranges::count(options.roots, remote.directory) > 0) {
    throw std::invalid_argument("the remote tier is a directory that it is behind: " +
                                remote.directory);
  }
  if (remote.capacity != 0 && remote.capacity / slab_bytes < 2) {
    throw std::invalid_argument("the remote tier's capacity holds fewer than two chunks of " +
                                std::to_string(slab_bytes) + " bytes");
  }
  if (!(options.free_space_floor >= 0 && options.free_space_floor <= 90)) {
    throw std::invalid_argument("free_space_floor is a percentage from 0 to 90");
  }
}

RootParts make_root_parts(const EngineOptions& options, const std::string& root) {
  RootParts parts;
  try {
    const ChunkPaths paths(root, options.namespace_digest, options.rank);
    make_tree(paths, options.access);
    parts.probe = probe_root(paths.temporary_directory(), options.direct_io, options.shared);
    IoEngineSelection selection = start_io_engine(options.io_engine, options.io_threads,
                                                  parts.probe.caching, parts.probe.submission);
    parts.io_engine = std::move(selection.engine);
    parts.io_engine_reason = std::move(selection.reason);
  } catch (const std::runtime_error& error) {
    parts.error = error.what();
  }
  return parts;
}

}  // namespace

EngineParts make_parts(const EngineOptions& options) {
  check(options);
  EngineParts parts;
  parts.device = make_device(options.device, SegmentTable(options.segments), options.transfer);
  std::string errors;
  for (const std::string& root : options.roots) {
    parts.roots.push_back(make_root_parts(options, root));
    const std::string& error = parts.roots.back().error;
    if (error.empty()) continue;
    errors += (errors.empty() ? "" : "; ") + error;
  }
  if (std::ranges::none_of(parts.roots, [](const RootParts& r) { return r.error.empty(); })) {
    throw std::runtime_error(errors);
  }
  if (!options.remote.directory.empty()) {
    parts.remote = make_root_parts(options, options.remote.directory);
  }
  return parts;
}

}  // namespace lmkv
