// Names in the tree: which are ours, and what they say. Pure functions over text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/types.hpp"

namespace lmkv {

inline constexpr std::size_t kFanOutDigits = 3;

// Digits of hexadecimal numbers are lower case, and no number has a zero too many: what is accepted
// is exactly what would be built from what it says.
[[nodiscard]] bool is_namespace_name(std::string_view name);
[[nodiscard]] bool is_fan_out_name(std::string_view name);
[[nodiscard]] std::optional<std::uint32_t> rank_of(std::string_view name);
// Of a chunk's file in the directory `fan_out`.
[[nodiscard]] std::optional<ChunkKey> key_of(std::string_view name, std::string_view fan_out);
[[nodiscard]] std::string chunk_file_name(const ChunkKey& key);

// Of a file in tmp/: a writer's or a probe's.
[[nodiscard]] bool is_temporary_name(std::string_view name);
// The same of one beside chunks, where only writers make files: it ends in 16 hex digits.
[[nodiscard]] bool is_unfinished_name(std::string_view name);

}  // namespace lmkv
