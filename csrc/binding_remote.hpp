// The remote tier as Python sees it: its settings, and its orders for threads that carry them out.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.hpp"

namespace lmkv::python {

// Throws ConfigError.
RemoteOptions make_remote_options(const std::string& name, const std::string& directory,
                                  const std::string& writes, std::uint64_t capacity,
                                  std::size_t load_depth, std::size_t store_depth);

// Address and bytes of all slabs.
std::pair<std::uintptr_t, std::size_t> slab_memory(const Engine& engine);
// Both throw ConfigError where there is no remote tier that is no directory, and release the GIL.
std::vector<RemoteOrder> take_remote(Engine& engine, RemoteLane lane, std::size_t most_bytes,
                                     double timeout_s);
void finish_remote(Engine& engine, std::uint64_t ticket, RemoteResult result,
                   const std::string& message);
// Copies without the GIL. Throws ConfigError for a buffer of another size.
void fill(std::uintptr_t address, std::size_t bytes, const pybind11::buffer& from);
pybind11::bytes key_of(const RemoteOrder& order);
std::uintptr_t address_of(const RemoteOrder& order);

}  // namespace lmkv::python
