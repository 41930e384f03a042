#include "binding_remote.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "binding_types.hpp"

namespace py = pybind11;

namespace lmkv::python {
namespace {

RemoteWrites writes_from(const std::string& name) {
  if (name == "write_through") return RemoteWrites::kThrough;
  if (name == "write_behind") return RemoteWrites::kBehind;
  if (name == "on_second_use") return RemoteWrites::kOnSecondUse;
  throw ConfigError("writes: write_through, write_behind or on_second_use, not " + name);
}

RemoteTier& tier_of(Engine& engine) {
  if (RemoteTier* const tier = engine.remote()) return *tier;
  throw ConfigError("the engine has no remote tier that takes orders");
}

}  // namespace

RemoteOptions make_remote_options(const std::string& name, const std::string& directory,
                                  const std::string& writes, std::uint64_t capacity,
                                  std::size_t load_depth, std::size_t store_depth) {
  if (name.empty()) throw ConfigError("a remote tier has a name");
  return {name, directory, writes_from(writes), capacity, load_depth, store_depth};
}

std::pair<std::uintptr_t, std::size_t> slab_memory(const Engine& engine) {
  const SlabMemory memory = engine.memory();
  return {reinterpret_cast<std::uintptr_t>(memory.begin), memory.bytes};
}

std::vector<RemoteOrder> take_remote(Engine& engine, RemoteLane lane, std::size_t most_bytes,
                                     double timeout_s) {
  RemoteTier& tier = tier_of(engine);
  const py::gil_scoped_release without_gil;
  return tier.take(lane, most_bytes, RemoteTier::Seconds(std::max(timeout_s, 0.0)));
}

void finish_remote(Engine& engine, std::uint64_t ticket, RemoteResult result,
                   const std::string& message) {
  RemoteTier& tier = tier_of(engine);
  const py::gil_scoped_release without_gil;
  tier.finish(ticket, result, message);
}

void fill(std::uintptr_t address, std::size_t bytes, const py::buffer& from) {
  const py::buffer_info source = from.request();
  if (static_cast<std::size_t>(source.size * source.itemsize) != bytes) {
    throw ConfigError(std::to_string(source.size * source.itemsize) + " bytes, where " +
                      std::to_string(bytes) + " are wanted");
  }
  const py::gil_scoped_release without_gil;
  std::memcpy(reinterpret_cast<void*>(address), source.ptr, bytes);
}

py::bytes key_of(const RemoteOrder& order) {
  return {reinterpret_cast<const char*>(order.key.bytes.data()), ChunkKey::kBytes};
}

std::uintptr_t address_of(const RemoteOrder& order) {
  return reinterpret_cast<std::uintptr_t>(order.buffer);
}

}  // namespace lmkv::python
