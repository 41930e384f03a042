#include "store/chunk_format.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <type_traits>

#include "common/checksum.hpp"

namespace lmkv {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

// First byte outside ASCII and a line end, as in PNG: text-mode copies are noticed.
constexpr std::array<std::uint8_t, 8> kMagic = {0x89, 'L', 'M', 'K', 'V', '\r', '\n', 0x1a};

// Files are no larger, and sizes computed from a header's numbers do not overflow.
constexpr std::uint64_t kLargestPayload = std::uint64_t{1} << 62;

struct Header {
  std::array<std::uint8_t, 8> magic;
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint64_t header_checksum;  // XXH3-64 of the page with this field zero
  std::array<std::uint8_t, 32> namespace_digest;
  std::array<std::uint8_t, 32> key;
  std::uint32_t rank;
  std::uint32_t block_tokens;
  std::uint64_t token_begin;
  std::uint32_t token_count;
  std::uint32_t block_count;
  std::uint64_t block_bytes;
  std::uint64_t payload_bytes;
  std::array<std::uint8_t, 128> reserved;  // zero
  std::array<std::uint64_t, kMaxBlocksPerChunk> block_checksums;
};
static_assert(sizeof(Header) == kHeaderBytes && std::is_trivially_copyable_v<Header>);

std::uint64_t header_checksum(Header header) {
  header.header_checksum = 0;
  return xxh3(&header, sizeof header);
}

std::uint64_t block_checksum(std::span<const std::byte> slab, const ChunkIdentity& identity,
                             std::size_t block) {
  const std::byte* begin = slab.data() + kHeaderBytes + block * identity.block_bytes;
  return xxh3(begin, identity.block_bytes);
}

Header header_of(const ChunkIdentity& identity) {
  Header header{};
  header.magic = kMagic;
  header.version = kFormatVersion;
  header.header_bytes = kHeaderBytes;
  header.namespace_digest = identity.namespace_digest.bytes;
  header.key = identity.key.bytes;
  header.rank = identity.rank;
  header.block_tokens = identity.block_tokens;
  header.token_begin = identity.token_begin;
  header.token_count = identity.block_count * identity.block_tokens;
  header.block_count = identity.block_count;
  header.block_bytes = identity.block_bytes;
  header.payload_bytes = identity.payload_bytes();
  return header;
}

// Whether `found`, whose own checksum is right, is what a writer makes of `identity`, whatever its
// blocks' checksums are.
bool says(const Header& found, const ChunkIdentity& identity) {
  Header wanted = header_of(identity);
  wanted.header_checksum = found.header_checksum;
  std::copy_n(found.block_checksums.begin(), identity.block_count, wanted.block_checksums.begin());
  return std::memcmp(&found, &wanted, sizeof found) == 0;
}

ChunkFault read_header(std::span<const std::byte> slab, Header& header) {
  std::memcpy(&header, slab.data(), sizeof header);
  if (header.magic != kMagic) return ChunkFault::kNotAChunk;
  if (header.version != kFormatVersion) return ChunkFault::kOtherVersion;
  if (header.header_checksum != header_checksum(header)) return ChunkFault::kHeaderChecksum;
  return ChunkFault::kNone;
}

}  // namespace

std::string_view to_string(ChunkFault fault) {
  switch (fault) {
    case ChunkFault::kNone: return "sound";
    case ChunkFault::kNotAChunk: return "not a chunk file";
    case ChunkFault::kOtherVersion: return "chunk file of another format version";
    case ChunkFault::kHeaderChecksum: return "header checksum mismatch";
    case ChunkFault::kOtherIdentity: return "chunk file of another key, namespace or shape";
    case ChunkFault::kBlockChecksum: return "block checksum mismatch";
  }
  return "unknown fault";
}

void seal_chunk(std::span<std::byte> slab, const ChunkIdentity& identity) {
  Header header = header_of(identity);
  for (std::size_t block = 0; block < identity.block_count; ++block) {
    header.block_checksums[block] = block_checksum(slab, identity, block);
  }
  header.header_checksum = header_checksum(header);
  std::memcpy(slab.data(), &header, sizeof header);
  const std::size_t end = kHeaderBytes + identity.payload_bytes();
  std::memset(slab.data() + end, 0, identity.file_bytes() - end);
}

ChunkFault read_identity(std::span<const std::byte> slab, ChunkIdentity& identity) {
  Header found;
  if (const ChunkFault fault = read_header(slab, found); fault != ChunkFault::kNone) return fault;
  identity = {};
  identity.namespace_digest.bytes = found.namespace_digest;
  identity.key.bytes = found.key;
  identity.rank = found.rank;
  identity.token_begin = found.token_begin;
  identity.block_tokens = found.block_tokens;
  identity.block_count = found.block_count;
  identity.block_bytes = found.block_bytes;
  std::uint64_t payload = 0;
  std::uint32_t tokens = 0;
  const bool overflows = __builtin_mul_overflow(found.block_bytes, found.block_count, &payload) ||
                         __builtin_mul_overflow(found.block_tokens, found.block_count, &tokens);
  const bool plausible = found.block_count > 0 && found.block_count <= kMaxBlocksPerChunk &&
                         found.block_bytes > 0 && !overflows && payload <= kLargestPayload;
  return plausible && says(found, identity) ? ChunkFault::kNone : ChunkFault::kOtherIdentity;
}

std::uint64_t block_checksum_in(std::span<const std::byte> header, std::size_t index) {
  Header found;
  std::memcpy(&found, header.data(), sizeof found);
  return found.block_checksums.at(index);
}

ChunkFault verify_header(std::span<const std::byte> slab, const ChunkIdentity& expected) {
  Header found;
  if (const ChunkFault fault = read_header(slab, found); fault != ChunkFault::kNone) return fault;
  return says(found, expected) ? ChunkFault::kNone : ChunkFault::kOtherIdentity;
}

ChunkFault verify_chunk(std::span<const std::byte> slab, const ChunkIdentity& expected) {
  if (const ChunkFault fault = verify_header(slab, expected); fault != ChunkFault::kNone) {
    return fault;
  }
  Header header;
  std::memcpy(&header, slab.data(), sizeof header);
  for (std::size_t block = 0; block < expected.block_count; ++block) {
    if (header.block_checksums[block] != block_checksum(slab, expected, block)) {
      return ChunkFault::kBlockChecksum;
    }
  }
  return ChunkFault::kNone;
}

}  // namespace lmkv
