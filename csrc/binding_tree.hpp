// A tree's files as Python's tools see them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "store/inspection.hpp"

namespace lmkv::python {

// A chunk, or a file that is being written or was left half written (then `key` is empty, and
// `path` says where it is).
struct TreeFile {
  std::string namespace16;
  std::uint32_t rank = 0;
  std::string key;
  std::string path;
  std::uint64_t bytes = 0;
  std::int64_t modified_ns = 0;
  std::int64_t changed_ns = 0;
};

// Calls `visit` with each file, as it is found; an exception of its ends the scan and goes on to
// the caller. False if something could not be read. The GIL is held in `visit` only.
bool scan_files(const std::string& root, const pybind11::function& visit);

// Without the GIL. Throws ConfigError for a name that is no namespace's or no key.
Inspection inspect_file(const std::string& root, const std::string& namespace16, std::uint32_t rank,
                        const std::string& key, bool blocks);

// Whether it was there, as it was seen, and is gone now. Without the GIL. Raises
// OSError.
bool remove_file(const std::string& root, const TreeFile& file);

std::uint64_t token_count(const Inspection& inspection);

}  // namespace lmkv::python
