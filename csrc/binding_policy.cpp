#include "binding_policy.hpp"

#include <chrono>
#include <cstddef>
#include <cstring>

#include "binding_types.hpp"
#include "store/use_stamp.hpp"

namespace py = pybind11;

namespace lmkv::python {
namespace {

std::size_t count_of(const std::string& keys) {
  if (keys.size() % ChunkKey::kBytes != 0) throw ConfigError("a key has 32 bytes");
  return keys.size() / ChunkKey::kBytes;
}

ChunkKey key_at(const std::string& keys, std::size_t index) {
  ChunkKey key;
  std::memcpy(key.bytes.data(), keys.data() + index * ChunkKey::kBytes, ChunkKey::kBytes);
  return key;
}

UseTime time_from(double seconds) {
  return UseTime(
      std::chrono::duration_cast<UseTime::duration>(std::chrono::duration<double>(seconds)));
}

}  // namespace

EvictionOrder eviction_order_from(const std::string& name) {
  if (name == "reuse") return EvictionOrder::kReuse;
  if (name == "lru") return EvictionOrder::kLeastRecentlyUsed;
  throw ConfigError("eviction must be reuse or lru, not \"" + name + "\"");
}

std::unique_ptr<EvictionPolicy> make_policy(const std::string& order) {
  return make_eviction_policy(eviction_order_from(order));
}

py::array_t<double> scan_worths(EvictionPolicy& policy, const std::string& keys,
                                const Times& modified_ns, std::int64_t now_ns) {
  const std::size_t count = count_of(keys);
  if (modified_ns.ndim() != 1 || static_cast<std::size_t>(modified_ns.size()) != count) {
    throw ConfigError("there must be one time for each key");
  }
  py::array_t<double> worths(static_cast<py::ssize_t>(count));
  const std::int64_t* const times = modified_ns.data();
  double* const out = worths.mutable_data();
  const py::gil_scoped_release release;
  policy.begin_scan(now_ns);
  for (std::size_t i = 0; i < count; ++i) {
    FileFacts facts;
    facts.modified_ns = times[i];
    facts.changed_ns = now_ns;
    out[i] = policy.worth(RankName{}, key_at(keys, i), facts);
  }
  return worths;
}

void note_evicted(EvictionPolicy& policy, const std::string& keys) {
  for (std::size_t i = 0; i < count_of(keys); ++i) policy.evicted(RankName{}, key_at(keys, i));
}

std::int64_t stamp_of(double used_at, std::uint64_t token_begin, double now) {
  return use_stamp(time_from(used_at), token_begin, time_from(now));
}

}  // namespace lmkv::python
