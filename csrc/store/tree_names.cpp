#include "store/tree_names.hpp"

#include <algorithm>
#include <charconv>

namespace lmkv {
namespace {

constexpr std::string_view kChunkSuffix = ".kv";
constexpr std::size_t kNamespaceDigits = 16;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }
bool is_alphanumeric(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool all_hex(std::string_view text, std::size_t digits) {
  return text.size() == digits && std::all_of(text.begin(), text.end(), is_hex);
}

std::uint8_t nibble(char c) {
  return static_cast<std::uint8_t>(is_digit(c) ? c - '0' : c - 'a' + 10);
}

}  // namespace

bool is_namespace_name(std::string_view name) { return all_hex(name, kNamespaceDigits); }

bool is_fan_out_name(std::string_view name) { return all_hex(name, kFanOutDigits); }

std::optional<std::uint32_t> rank_of(std::string_view name) {
  if (name.size() < 2 || name[0] != 'r') return std::nullopt;
  std::uint32_t rank = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + 1, end, rank);
  // Not r007, nor r+7: the name is built again from the number.
  if (error != std::errc() || stop != end || name.substr(1) != std::to_string(rank)) {
    return std::nullopt;
  }
  return rank;
}

std::optional<ChunkKey> key_of(std::string_view name, std::string_view fan_out) {
  if (!name.ends_with(kChunkSuffix)) return std::nullopt;
  const std::string_view hex = name.substr(0, name.size() - kChunkSuffix.size());
  if (!all_hex(hex, 2 * ChunkKey::kBytes) || !hex.starts_with(fan_out)) return std::nullopt;
  ChunkKey key;
  for (std::size_t i = 0; i < ChunkKey::kBytes; ++i) {
    key.bytes[i] = static_cast<std::uint8_t>(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
  }
  return key;
}

bool is_temporary_name(std::string_view name) {
  const std::size_t last = name.rfind('-');
  if (last == std::string_view::npos || last == 0) return false;
  const std::size_t before = name.rfind('-', last - 1);
  if (before == std::string_view::npos || before == 0) return false;
  const std::string_view pid = name.substr(before + 1, last - before - 1);
  const std::string_view unique = name.substr(last + 1);
  return !pid.empty() && std::all_of(pid.begin(), pid.end(), is_digit) && !unique.empty() &&
         std::all_of(unique.begin(), unique.end(), is_alphanumeric);
}

bool is_unfinished_name(std::string_view name) {
  constexpr std::size_t kDigits = 16;
  if (!is_temporary_name(name)) return false;
  const std::string_view unique = name.substr(name.rfind('-') + 1);
  return all_hex(unique, kDigits);
}

std::string chunk_file_name(const ChunkKey& key) { return key.hex() + std::string(kChunkSuffix); }

}  // namespace lmkv
