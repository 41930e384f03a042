// Arenas of host memory as Python's schedulers and tools see them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arena/arena_view.hpp"

namespace lmkv::python {

// All throw ConfigError for arguments that cannot be, and ArenaError (lmkv.ArenaError).
std::unique_ptr<ArenaView> make_arena_view(const std::string& directory, std::size_t slab_bytes,
                                           const std::string& file_mode,
                                           const std::string& name_space, std::uint32_t ranks);
std::size_t leading_in_arena(ArenaView& arena, const std::vector<std::string>& keys);
std::vector<bool> present_in_arena(ArenaView& arena, const std::vector<std::string>& keys);
bool is_in_arena(ArenaView& arena, const std::string& key);

std::optional<ArenaReport> arena_report(const std::string& directory, std::size_t slab_bytes,
                                        const std::string& file_mode, bool thorough);
std::uint64_t remove_arena_of(const std::string& directory, std::size_t slab_bytes,
                              const std::string& file_mode);

}  // namespace lmkv::python
