// Bytes in the place of a chunk's file: the header's parsers, the verification of a load, and the
// inspection of the tools, against a second reading of the format (reference_format.hpp).
//
// An input is short, so that a chunk of a few blocks is some hundred bytes of corpus:
//   0      flags: what the reader expects (the header's own numbers or the seed's), and one bit
//   more 1      which of the expected numbers is another one; 0: none 2      checksums in the
//   input; 3: how much longer or shorter the file is than whole pages 4..    the header's first 256
//   bytes, the checksums, the payload
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <random>

#include "expect.hpp"
#include "reference_format.hpp"
#include "store/chunk_format.hpp"
#include "store/directory.hpp"
#include "store/inspection.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace lmkv::fuzz {
namespace {

constexpr std::size_t kControl = 4;
constexpr std::size_t kFixed = kControl + kChecksumsAt;
constexpr std::size_t kLargestFile = 16 * kPage;
constexpr std::uint8_t kOwnNumbers = 1;

// Of the seeds: where the reader looks, and what it expects there.
ChunkIdentity seed_identity() {
  ChunkIdentity identity;
  identity.namespace_digest.bytes.fill(0xab);
  identity.key.bytes.fill(0x5c);
  identity.rank = 3;
  identity.token_begin = 512;
  identity.block_tokens = 16;
  identity.block_count = 3;
  identity.block_bytes = 40;
  return identity;
}

Bytes file_of(std::span<const std::uint8_t> input) {
  const std::size_t checksums = std::min<std::size_t>(input[2], (input.size() - kFixed) / 8);
  Bytes file(kPage);
  std::copy_n(input.begin() + kControl, kChecksumsAt + 8 * checksums, file.begin());
  const auto payload = input.subspan(kFixed + 8 * checksums);
  file.insert(file.end(), payload.begin(), payload.end());
  file.resize((file.size() + kPage - 1) / kPage * kPage);
  const auto more = static_cast<std::int8_t>(input[3]);
  file.resize(file.size() + static_cast<std::size_t>(more + 128) - 128);
  file.resize(std::min(file.size(), kLargestFile));
  return file;
}

ChunkIdentity expected_of(std::span<const std::uint8_t> input, std::span<const std::uint8_t> page) {
  ChunkIdentity identity = seed_identity();
  if ((input[0] & kOwnNumbers) != 0) {
    std::copy_n(page.begin() + 24, 32, identity.namespace_digest.bytes.begin());
    std::copy_n(page.begin() + 56, 32, identity.key.bytes.begin());
    identity.rank = number_at<std::uint32_t>(page, 88);
    identity.block_tokens = number_at<std::uint32_t>(page, 92);
    identity.token_begin = number_at<std::uint64_t>(page, 96);
    identity.block_count = number_at<std::uint32_t>(page, 108);
    identity.block_bytes = number_at<std::uint64_t>(page, 112);
  }
  switch (input[1] % 8) {
    case 1: identity.namespace_digest.bytes[input[0] % 32] ^= 1; break;
    case 2: identity.key.bytes[input[0] % 32] ^= 1; break;
    case 3: identity.rank ^= 1; break;
    case 4: identity.block_tokens ^= 1; break;
    case 5: identity.token_begin ^= 1; break;
    case 6: identity.block_count ^= 1; break;
    case 7: identity.block_bytes ^= 1; break;
    default: break;
  }
  return identity;
}

bool is_what_it_says(const ChunkIdentity& identity, std::span<const std::uint8_t> page) {
  return std::equal(identity.namespace_digest.bytes.begin(), identity.namespace_digest.bytes.end(),
                    page.begin() + 24) &&
         std::equal(identity.key.bytes.begin(), identity.key.bytes.end(), page.begin() + 56) &&
         identity.rank == number_at<std::uint32_t>(page, 88) &&
         identity.block_tokens == number_at<std::uint32_t>(page, 92) &&
         identity.token_begin == number_at<std::uint64_t>(page, 96) &&
         identity.block_count == number_at<std::uint32_t>(page, 108) &&
         identity.block_bytes == number_at<std::uint64_t>(page, 112);
}

// Of exactly so many bytes, so that a byte beyond is noticed.
std::unique_ptr<std::byte[]> copy_of(std::span<const std::uint8_t> bytes) {
  auto copy = std::make_unique<std::byte[]>(bytes.size());
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  return copy;
}

void check_page(std::span<const std::uint8_t> page) {
  const auto copy = copy_of(page.first(kPage));
  ChunkIdentity identity;
  const bool accepted = read_identity({copy.get(), kPage}, identity) == ChunkFault::kNone;
  expect(accepted == is_sound_header(page), "read_identity and the format differ");
  if (!accepted) return;
  expect(is_what_it_says(identity, page), "read_identity says what the header does not");
  expect(identity.file_bytes() == file_bytes_of(page), "the sizes differ");
  for (std::size_t i = 0; i < identity.block_count; ++i) {
    const auto checksum = number_at<std::uint64_t>(page, kChecksumsAt + 8 * i);
    expect(block_checksum_in({copy.get(), kPage}, i) == checksum, "another checksum");
  }
}

// As a load does, which compares the file's length before.
void check_load(std::span<const std::uint8_t> file, const ChunkIdentity& expected) {
  if (expected.block_count == 0 || expected.block_count > kMostBlocks) return;
  if (expected.block_bytes > kLargestFile || expected.block_bytes == 0) return;
  if (expected.file_bytes() != file.size()) return;
  // No engine expects more tokens than it can count.
  if (std::uint64_t{expected.block_count} * expected.block_tokens > UINT32_MAX) return;
  const auto copy = copy_of(file);
  const std::span<const std::byte> slab{copy.get(), file.size()};
  const bool is_it = is_sound_header(file) && is_what_it_says(expected, file);
  expect((verify_header(slab, expected) == ChunkFault::kNone) == is_it,
         "verify_header and the format differ");
  const bool accepted = verify_chunk(slab, expected) == ChunkFault::kNone;
  expect(accepted == (is_it && blocks_are_sound(file)), "verify_chunk and the format differ");
  if (!accepted) return;
  Bytes again(file.begin(), file.end());
  seal_chunk({reinterpret_cast<std::byte*>(again.data()), again.size()}, expected);
  expect(std::memcmp(again.data(), file.data(), kPage + expected.payload_bytes()) == 0,
         "sealed again it is another file");
}

class Place {
 public:
  Place() {
    const std::string name = identity_.namespace_digest.hex();
    std::copy_n(name.begin(), rank_.namespace16.size(), rank_.namespace16.begin());
    rank_.rank = identity_.rank;
    const ChunkPaths paths(scratch_.path(), identity_.namespace_digest, identity_.rank);
    path_ = paths.chunk(identity_.key);
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    expect(file_ >= 0, "cannot make the file");
  }
  Inspection inspect(std::span<const std::uint8_t> bytes, Inspect depth) {
    const auto size = static_cast<ssize_t>(bytes.size());
    expect(::ftruncate(file_, 0) == 0 && ::pwrite(file_, bytes.data(), bytes.size(), 0) == size,
           "cannot write the file");
    return inspect_chunk(scratch_.path(), rank_, identity_.key, depth);
  }
  [[nodiscard]] bool is_of_here(std::span<const std::uint8_t> page) const {
    const auto& name = identity_.namespace_digest.bytes;
    return std::equal(name.begin(), name.begin() + 8, page.begin() + 24) &&
           std::equal(identity_.key.bytes.begin(), identity_.key.bytes.end(), page.begin() + 56) &&
           number_at<std::uint32_t>(page, 88) == identity_.rank;
  }

 private:
  const Scratch scratch_;
  const ChunkIdentity identity_ = seed_identity();
  RankName rank_;
  std::string path_;
  int file_ = -1;
};

void check_inspection(std::span<const std::uint8_t> file) {
  static Place place;
  const bool says = file.size() >= kPage && is_sound_header(file) && place.is_of_here(file) &&
                    file_bytes_of(file) == file.size();
  const Inspection header = place.inspect(file, Inspect::kHeader);
  expect((header.finding == Finding::kSound) == says, "inspect_chunk takes another header");
  expect(says || header.finding == Finding::kBad, "what is not sound is bad");
  const Inspection all = place.inspect(file, Inspect::kHeaderAndBlocks);
  expect((all.finding == Finding::kSound) == (says && blocks_are_sound(file)),
         "inspect_chunk takes other blocks");
  expect(all.bytes == file.size(), "another size");
}

// Makes a sound file of what mutation left, so that what lies behind the checksums is reached.
void mend(std::span<std::uint8_t> input, std::minstd_rand& random) {
  Bytes file = file_of(input);
  if (file.size() < kPage) return;
  const std::size_t checksums = std::min<std::size_t>(input[2], (input.size() - kFixed) / 8);
  const auto blocks = number_at<std::uint32_t>(file, 108);
  const auto bytes = number_at<std::uint64_t>(file, 112);
  if (random() % 4 != 0 && bytes != 0 && bytes < file.size()) {
    for (std::size_t i = 0; i < blocks && i < checksums; ++i) {
      if (kPage + (i + 1) * bytes > file.size()) break;
      put(std::span(file), kChecksumsAt + 8 * i,
          XXH3_64bits(file.data() + kPage + i * bytes, bytes));
    }
  }
  put_header_checksum(std::span(file).first(kPage));
  std::copy_n(file.begin(), kChecksumsAt + 8 * checksums, input.begin() + kControl);
}

void change_a_number(std::span<std::uint8_t> input, std::minstd_rand& random) {
  constexpr std::size_t kFields[] = {8, 12, 88, 92, 96, 104, 108, 112, 120};
  constexpr std::uint64_t kNumbers[] = {0,     1,          2,          3,          4,         16,
                                        40,    48,         120,        480,        481,       4096,
                                        ~0ULL, 1ULL << 31, 1ULL << 32, 1ULL << 62, 1ULL << 63};
  const std::size_t field = kFields[random() % std::size(kFields)];
  const std::uint64_t value = kNumbers[random() % std::size(kNumbers)];
  const bool is_long = field == 96 || field >= 112;
  const auto header = input.subspan(kControl);
  if (is_long) {
    put(header, field, value);
  } else {
    put(header, field, static_cast<std::uint32_t>(value));
  }
  if (random() % 2 == 0) return;  // else what follows from the numbers is right again
  const auto blocks = number_at<std::uint32_t>(header, 108);
  put(header, 104, blocks * number_at<std::uint32_t>(header, 92));
  put(header, 120, blocks * number_at<std::uint64_t>(header, 112));
}

}  // namespace
}  // namespace lmkv::fuzz

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned int seed) {
  using namespace lmkv::fuzz;
  std::minstd_rand random(seed);
  if (size < kFixed || random() % 4 != 0) size = LLVMFuzzerMutate(data, size, most);
  if (size < kFixed) return size;
  const std::span<std::uint8_t> input(data, size);
  if (random() % 3 == 0) change_a_number(input, random);
  if (random() % 8 != 0) mend(input, random);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lmkv::fuzz;
  const std::span<const std::uint8_t> input(data, size);
  if (size < kFixed) {
    if (size > 0) check_inspection(input);
    return 0;
  }
  const Bytes file = file_of(input);
  check_inspection(file);
  if (file.size() < kPage) return 0;
  check_page(file);
  check_load(file, expected_of(input, file));
  return 0;
}
