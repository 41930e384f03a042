// A tree's files as Python's tools see them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "store/evictor.hpp"
#include "store/inspection.hpp"

namespace lmkv::python {

// A chunk, or a file that is being written or was left half written: then `key` is empty.
struct TreeFile {
  std::string namespace16;
  std::uint32_t rank = 0;
  std::string key;
  std::uint64_t bytes = 0;
  std::uint64_t size = 0;
  std::int64_t modified_ns = 0;
  std::int64_t changed_ns = 0;
  bool removed = false;
};

// Calls `visit` with each file, as it is found; an exception of its ends the scan and goes on to
// the caller. Files that are no chunks and were last written before `sweep_before_ns` are removed
// as they are found. False if something could not be read. The GIL is held in `visit` only.
bool scan_files(const std::string& root, const pybind11::function& visit,
                std::int64_t sweep_before_ns);

// Without the GIL. Throws ConfigError for a name that is no namespace's or no key.
Inspection inspect_file(const std::string& root, const std::string& namespace16, std::uint32_t rank,
                        const std::string& key, bool blocks);

// Without the GIL. Raises OSError, and ConfigError for a file that is no chunk.
Eviction remove_chunk(const std::string& root, const TreeFile& file);

// Index of the root that a chunk of this key belongs to. Throws ConfigError for no roots or no key.
std::size_t root_of(const std::vector<std::string>& roots, const std::string& key);

std::uint64_t token_count(const Inspection& inspection);

}  // namespace lmkv::python
