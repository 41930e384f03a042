// Names of files and directories: what is taken for ours is what we would have called it, by a
// second reading of docs/file-format.md, and leads nowhere else.
#include <cstdint>
#include <string>
#include <string_view>

#include "expect.hpp"
#include "store/tree_names.hpp"

namespace lmkv::fuzz {
namespace {

constexpr std::string_view kHex = "0123456789abcdef";
constexpr std::string_view kDigits = "0123456789";
constexpr std::string_view kLettersAndDigits =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

bool consists_of(std::string_view text, std::string_view alphabet, std::size_t length) {
  return text.size() == length && text.find_first_not_of(alphabet) == std::string_view::npos;
}

bool is_rank(std::string_view name) {
  if (name.size() < 2 || name.size() > 11 || name[0] != 'r') return false;
  const std::string_view number = name.substr(1);
  if (!consists_of(number, kDigits, number.size()) || (number[0] == '0' && number.size() > 1)) {
    return false;
  }
  return std::stoull(std::string(number)) <= UINT32_MAX;
}

// <anything>-<digits>-<letters and digits>, read from its end.
bool is_temporary(std::string_view name, std::string_view& unique) {
  std::size_t at = name.size();
  const auto skip = [&](std::string_view alphabet) {
    const std::size_t end = at;
    while (at > 0 && alphabet.find(name[at - 1]) != std::string_view::npos) --at;
    return end - at;
  };
  const std::size_t letters = skip(kLettersAndDigits);
  unique = name.substr(at);
  if (letters == 0 || at == 0 || name[--at] != '-') return false;
  if (skip(kDigits) == 0 || at == 0 || name[--at] != '-') return false;
  return at > 0;
}

void check(std::string_view name, std::string_view fan_out) {
  expect(is_namespace_name(name) == consists_of(name, kHex, 16), "namespaces differ");
  expect(is_fan_out_name(name) == consists_of(name, kHex, 3), "fan-out directories differ");

  const auto rank = rank_of(name);
  expect(rank.has_value() == is_rank(name), "ranks differ");
  expect(!rank || "r" + std::to_string(*rank) == name, "a rank of another name");

  const auto key = key_of(name, fan_out);
  const bool is_chunk = name.size() == 67 && consists_of(name.substr(0, 64), kHex, 64) &&
                        name.substr(64) == ".kv" && name.substr(0, 64).starts_with(fan_out);
  expect(key.has_value() == is_chunk, "chunks differ");
  expect(!key || chunk_file_name(*key) == name, "a chunk of another name");

  std::string_view unique;
  const bool temporary = is_temporary(name, unique);
  expect(is_temporary_name(name) == temporary, "temporary names differ");
  expect(is_unfinished_name(name) == (temporary && consists_of(unique, kHex, 16)),
         "names of unfinished files differ");

  const bool is_ours = rank || key || is_namespace_name(name) || is_fan_out_name(name);
  expect(!is_ours || name.find_first_of("/.\n") == std::string_view::npos || key,
         "a name of ours that leads elsewhere");
  expect(!(temporary && key), "a chunk that is taken for a temporary file");
}

}  // namespace
}  // namespace lmkv::fuzz

// A name, then, behind a line end, the directory that it is in.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.rfind('\n');
  const std::string_view name = input.substr(0, end);
  const std::string_view fan_out = end == std::string_view::npos ? "" : input.substr(end + 1);
  lmkv::fuzz::check(name, fan_out);
  return 0;
}
