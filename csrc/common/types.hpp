// The words of docs/architecture.md as types.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace lmkv {

// File offsets, buffer addresses and lengths are multiples of this wherever O_DIRECT is used.
inline constexpr std::size_t kPageBytes = 4096;

enum class BlockId : std::uint32_t {};
enum class JobId : std::uint64_t {};

// 256 bits that name something: a chunk (`ChunkKey`) or a namespace (`NamespaceDigest`).
template <typename Tag>
struct Digest {
  static constexpr std::size_t kBytes = 32;
  std::array<std::uint8_t, kBytes> bytes{};

  friend bool operator==(const Digest&, const Digest&) = default;

  [[nodiscard]] std::string hex() const {
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text(2 * kBytes, '0');
    for (std::size_t i = 0; i < kBytes; ++i) {
      text[2 * i] = kDigits[bytes[i] >> 4];
      text[2 * i + 1] = kDigits[bytes[i] & 15];
    }
    return text;
  }
};
using ChunkKey = Digest<struct ChunkKeyTag>;
using NamespaceDigest = Digest<struct NamespaceDigestTag>;

// Keys are cryptographic hashes already: any eight bytes of one spread evenly.
struct ChunkKeyHash {
  std::size_t operator()(const ChunkKey& key) const {
    std::size_t value;
    std::memcpy(&value, key.bytes.data(), sizeof value);
    return value;
  }
};

[[nodiscard]] constexpr std::size_t round_up_to_page(std::size_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

}  // namespace lmkv
