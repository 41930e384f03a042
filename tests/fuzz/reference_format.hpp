// docs/file-format.md once more, written from the page and not from csrc/: what a sound file is.
#pragma once

#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace lmkv::fuzz {

using Bytes = std::vector<std::uint8_t>;

inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kChecksumsAt = 256;
inline constexpr std::uint64_t kMostBlocks = 480;

template <typename T>
T number_at(std::span<const std::uint8_t> bytes, std::size_t offset) {
  T value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

template <typename T>
void put(std::span<std::uint8_t> bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

inline void put_header_checksum(std::span<std::uint8_t> page) {
  put<std::uint64_t>(page, 16, 0);
  put<std::uint64_t>(page, 16, XXH3_64bits(page.data(), kPage));
}

// Whether a header page is one that a writer makes, of whatever chunk.
inline bool is_sound_header(std::span<const std::uint8_t> page) {
  constexpr std::uint8_t kMagic[] = {0x89, 0x4c, 0x4d, 0x4b, 0x56, 0x0d, 0x0a, 0x1a};
  if (std::memcmp(page.data(), kMagic, 8) != 0) return false;
  if (number_at<std::uint32_t>(page, 8) != 1 || number_at<std::uint32_t>(page, 12) != kPage) {
    return false;
  }
  Bytes again(page.begin(), page.begin() + kPage);
  put_header_checksum(again);
  if (!std::equal(again.begin(), again.end(), page.begin())) return false;
  const std::uint64_t block_tokens = number_at<std::uint32_t>(page, 92);
  const std::uint64_t blocks = number_at<std::uint32_t>(page, 108);
  const auto block_bytes = number_at<std::uint64_t>(page, 112);
  if (blocks < 1 || blocks > kMostBlocks || block_bytes == 0) return false;
  if (number_at<std::uint32_t>(page, 104) != blocks * block_tokens) return false;
  if (block_bytes > (std::uint64_t{1} << 62) / blocks) return false;
  if (number_at<std::uint64_t>(page, 120) != blocks * block_bytes) return false;
  const auto is_zero = [page](std::size_t begin, std::size_t end) {
    const auto part = page.subspan(begin, end - begin);
    return std::all_of(part.begin(), part.end(), [](std::uint8_t byte) { return byte == 0; });
  };
  return is_zero(128, kChecksumsAt) && is_zero(kChecksumsAt + 8 * blocks, kPage);
}

inline std::uint64_t file_bytes_of(std::span<const std::uint8_t> page) {
  const auto payload = number_at<std::uint64_t>(page, 120);
  return kPage + (payload + kPage - 1) / kPage * kPage;
}

// Of a file that is as long as its sound header says.
inline bool blocks_are_sound(std::span<const std::uint8_t> file) {
  const auto blocks = number_at<std::uint32_t>(file, 108);
  const auto bytes = number_at<std::uint64_t>(file, 112);
  for (std::uint32_t i = 0; i < blocks; ++i) {
    const std::uint64_t checksum = XXH3_64bits(file.data() + kPage + i * bytes, bytes);
    if (checksum != number_at<std::uint64_t>(file, kChecksumsAt + 8 * i)) return false;
  }
  return true;
}

}  // namespace lmkv::fuzz
