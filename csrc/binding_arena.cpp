#include "binding_arena.hpp"

#include <pybind11/pybind11.h>

#include "binding_types.hpp"

namespace py = pybind11;

namespace lmkv::python {

std::unique_ptr<ArenaView> make_arena_view(const std::string& directory, std::size_t slab_bytes,
                                           const std::string& file_mode,
                                           const std::string& name_space, std::uint32_t ranks) {
  return std::make_unique<ArenaView>(ArenaPlace{directory, slab_bytes, access_from(file_mode)},
                                     namespace_from(name_space), ranks);
}

std::size_t leading_in_arena(ArenaView& arena, const std::vector<std::string>& keys) {
  const std::vector<ChunkKey> wanted = keys_from(keys);
  const py::gil_scoped_release unlocked;
  return arena.leading(wanted);
}

std::vector<bool> present_in_arena(ArenaView& arena, const std::vector<std::string>& keys) {
  const std::vector<ChunkKey> wanted = keys_from(keys);
  const py::gil_scoped_release unlocked;
  return arena.present(wanted);
}

// With the GIL: it takes less than to give it away and get it back.
bool is_in_arena(ArenaView& arena, const std::string& key) {
  return arena.leading({key_from(key)}) == 1;
}

std::optional<ArenaReport> arena_report(const std::string& directory, std::size_t slab_bytes,
                                        const std::string& file_mode, bool thorough) {
  return report_arena({directory, slab_bytes, access_from(file_mode)}, thorough);
}

std::uint64_t remove_arena_of(const std::string& directory, std::size_t slab_bytes,
                              const std::string& file_mode) {
  return remove_arena({directory, slab_bytes, access_from(file_mode)});
}

}  // namespace lmkv::python
