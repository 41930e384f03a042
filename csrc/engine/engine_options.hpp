// What an engine is told, and what it is made of.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/types.hpp"
#include "device/device.hpp"
#include "io/io_engine.hpp"
#include "io/root_probe.hpp"
#include "store/housekeeper.hpp"

namespace lmkv {

// When what was stored in a directory goes to the remote tier.
enum class RemoteWrites {
  kThrough,      // at once; a store is done when both have it
  kBehind,       // at once, but nobody waits for it
  kOnSecondUse,  // when it is loaded, from memory or the directory
};

// A tier behind the directories: what they do not have is asked of it, and goes down to them.
struct RemoteOptions {
  std::string name;       // for people; "": there is none
  std::string directory;  // that several hosts share; "": Engine::remote() takes orders for it
  RemoteWrites writes = RemoteWrites::kBehind;
  std::uint64_t capacity = 0;  // of the directory, as EngineOptions::capacity
  std::size_t load_depth = 128 << 20;
  std::size_t store_depth = 128 << 20;
};

struct EngineOptions {
  std::vector<std::string> roots;  // one or more; chunks are spread over them (store/stripes.hpp)
  NamespaceDigest namespace_digest;
  std::uint32_t rank = 0;
  std::vector<Segment> segments;
  std::size_t block_count = 0;  // of the paged KV cache: ids are below it
  std::uint32_t block_tokens = 0;
  std::uint32_t blocks_per_chunk = 0;
  std::size_t host_memory = 0;  // bytes for slabs
  // Where an arena is that all engines of the node have their slabs in, of about `host_memory`
  // bytes if it has to be made (arena/arena_file.hpp); "": this engine has slabs of its own.
  std::string arena_directory;
  std::string device = "host";
  TransferOptions transfer;
  IoEngineChoice io_engine = IoEngineChoice::kAuto;
  DirectIoChoice direct_io = DirectIoChoice::kAuto;
  SharedChoice shared = SharedChoice::kAuto;
  Access access = Access::kPrivate;
  unsigned io_threads = 1;  // of each root
  std::size_t request_bytes = 1 << 20;
  std::size_t load_depth = 64 << 20;  // of each root, as the two below
  std::size_t store_depth = 32 << 20;
  std::uint64_t capacity = 0;     // bytes below the root, everybody's; 0: no limit
  double free_space_floor = 5.0;  // percent of the filesystem that stays free
  // A load that takes longer is given up; zero: by how fast loads are (engine/load_patience.hpp).
  std::chrono::duration<double> load_timeout{0};
  RemoteOptions remote;
  HousekeepingOptions housekeeping;  // the order of eviction and the age limit among them
};

// Size of a slab: header page and a whole chunk's payload.
std::size_t slab_bytes_of(const EngineOptions& options);

// What one root needs. `error`: why it cannot be used; nothing else is set then.
struct RootParts {
  RootProbe probe;
  std::unique_ptr<IoEngine> io_engine;
  std::string io_engine_reason;
  std::string error;
};

// What runs under the pipelines. `make_parts` makes the real ones; tests put faults in between.
struct EngineParts {
  std::unique_ptr<Device> device;
  std::vector<RootParts> roots;  // as in the options
  RootParts remote;              // of RemoteOptions::directory, if there is one
};
// Throws std::invalid_argument for options that cannot work, before anything is started or made;
// std::runtime_error for a machine that does not let them, or when no root can be used. Blocks on
// the disk.
EngineParts make_parts(const EngineOptions& options);

}  // namespace lmkv
