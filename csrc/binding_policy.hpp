// The evictor's order, for those who replay requests without files.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "store/eviction_policy.hpp"

namespace lmkv::python {

using Times =
    pybind11::array_t<std::int64_t, pybind11::array::c_style | pybind11::array::forcecast>;

// Throws ConfigError.
EvictionOrder eviction_order_from(const std::string& name);
std::unique_ptr<EvictionPolicy> make_policy(const std::string& order);

// Of files with these keys, 32 bytes each, and modification times, as one scan.
pybind11::array_t<double> scan_worths(EvictionPolicy& policy, const std::string& keys,
                                      const Times& modified_ns, std::int64_t now_ns);
void note_evicted(EvictionPolicy& policy, const std::string& keys);

// `used_at`, `now`: seconds since the epoch.
std::int64_t stamp_of(double used_at, std::uint64_t token_begin, double now);

}  // namespace lmkv::python
