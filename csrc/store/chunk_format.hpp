// Chunk file format, version 1 (docs/file-format.md). Pure functions over bytes: no I/O.
//
//   page 0      the header: identity, sizes, and one XXH3-64 per block
//   page 1 ...  the payload, block-major: block 0 (segment 0, segment 1, ...), block 1, ...
//               padded with zeros to a whole page
//
// Any leading run of blocks is one contiguous read, and a block is verified by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "common/types.hpp"

namespace lmkv {

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::size_t kHeaderBytes = kPageBytes;
inline constexpr std::size_t kMaxBlocksPerChunk = 480;  // what the header page has room for

// Everything that a reader must know beforehand, and finds confirmed in the header.
struct ChunkIdentity {
  NamespaceDigest namespace_digest;
  ChunkKey key;
  std::uint32_t rank = 0;
  std::uint64_t token_begin = 0;
  std::uint32_t block_tokens = 0;
  std::uint32_t block_count = 0;
  std::uint64_t block_bytes = 0;

  [[nodiscard]] std::size_t payload_bytes() const { return block_count * block_bytes; }
  // Size of the file, and of the I/O: header page and payload padded to a page.
  [[nodiscard]] std::size_t file_bytes() const {
    return kHeaderBytes + round_up_to_page(payload_bytes());
  }
};

// Checksums the payload behind `slab`'s header page, zeroes the padding and writes the header.
// `slab` holds at least `identity.file_bytes()` bytes.
void seal_chunk(std::span<std::byte> slab, const ChunkIdentity& identity);

enum class ChunkFault {
  kNone,
  kNotAChunk,       // no magic
  kOtherVersion,    // a format version that this build does not read
  kHeaderChecksum,  // the header page is damaged
  kOtherIdentity,   // a sound chunk, but not the one that was asked for
  kBlockChecksum,   // a block's bytes are damaged
};
[[nodiscard]] std::string_view to_string(ChunkFault fault);

// What the header page of `slab` says of its chunk, for tools that expect nothing: kNone if the
// page is sound and its numbers belong together. They may be anybody's, and as large as they like.
[[nodiscard]] ChunkFault read_identity(std::span<const std::byte> slab, ChunkIdentity& identity);

// The XXH3-64 of block `index` that the (sound) header page in `header` states.
[[nodiscard]] std::uint64_t block_checksum_in(std::span<const std::byte> header, std::size_t index);

// Whether the header page of `slab` is sound and says what is expected; looks at no block.
[[nodiscard]] ChunkFault verify_header(std::span<const std::byte> slab,
                                       const ChunkIdentity& expected);

// Verifies header and every block of `slab` against what is expected. Nothing of a slab may be
// used before this returned kNone (architecture.md, invariant 3).
[[nodiscard]] ChunkFault verify_chunk(std::span<const std::byte> slab,
                                      const ChunkIdentity& expected);

}  // namespace lmkv
