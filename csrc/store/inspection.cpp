#include "store/inspection.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "common/checksum.hpp"
#include "common/posix.hpp"
#include "common/unique_fd.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;

Inspection bad(Inspection found, std::string_view text) {
  found.finding = Finding::kBad;
  found.text = text;
  return found;
}

// What a load makes of the same failure: a disk that cannot read its own sectors has a bad file.
Inspection unreadable(Inspection found, int error) {
  if (is_damaged(error)) return bad(std::move(found), std::strerror(error));
  found.finding = is_gone(error) ? Finding::kGone : Finding::kUnreadable;
  found.text = std::strerror(error);
  return found;
}

constexpr int kEnds = -1;  // no errno

// All of `buffer`: 0, or an errno; kEnds where the file ends before.
int read_at(int file, std::span<std::byte> buffer, std::uint64_t offset) {
  while (!buffer.empty()) {
    const ssize_t got = ::pread(file, buffer.data(), buffer.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) return kEnds;
    buffer = buffer.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return 0;
}

Inspection failed_to_read(Inspection found, int error) {
  if (error == kEnds) return bad(std::move(found), "the file ends early");
  return unreadable(std::move(found), error);
}

Inspection check_blocks(int file, std::span<const std::byte> header, Inspection found) {
  const std::uint64_t size = found.identity.block_bytes;
  std::vector<std::byte> piece(std::min<std::uint64_t>(size, kPiece));
  std::uint64_t offset = kHeaderBytes;
  for (std::uint32_t i = 0; i < found.identity.block_count; ++i) {
    Xxh3Stream checksum;
    for (std::uint64_t left = size; left > 0;) {
      const auto part = std::span(piece).first(std::min<std::uint64_t>(left, piece.size()));
      if (const int error = read_at(file, part, offset); error != 0) {
        return failed_to_read(std::move(found), error);
      }
      checksum.add(part.data(), part.size());
      offset += part.size();
      left -= part.size();
    }
    if (checksum.value() != block_checksum_in(header, i)) {
      return bad(std::move(found), to_string(ChunkFault::kBlockChecksum));
    }
  }
  found.finding = Finding::kSound;
  return found;
}

Inspection inspect(int file, const RankName& rank, const ChunkKey& key, Inspect depth) {
  Inspection found;
  struct stat status{};
  if (::fstat(file, &status) != 0) return unreadable(std::move(found), errno);
  if (!S_ISREG(status.st_mode)) return bad(std::move(found), "not a regular file");
  found.bytes = static_cast<std::uint64_t>(status.st_size);
  found.modified_ns = nanoseconds(status.st_mtim);
  found.changed_ns = nanoseconds(status.st_ctim);
  std::array<std::byte, kHeaderBytes> header{};
  if (const int error = read_at(file, header, 0); error != 0) {
    return failed_to_read(std::move(found), error);
  }
  ChunkIdentity identity;
  if (const ChunkFault fault = read_identity(header, identity); fault != ChunkFault::kNone) {
    return bad(std::move(found), to_string(fault));
  }
  const std::string namespace16(rank.namespace16.begin(), rank.namespace16.end());
  if (identity.key != key || identity.rank != rank.rank ||
      identity.namespace_digest.hex().substr(0, namespace16.size()) != namespace16) {
    return bad(std::move(found), to_string(ChunkFault::kOtherIdentity));
  }
  if (identity.file_bytes() != found.bytes) {
    return bad(std::move(found), "the file is not as long as its header says");
  }
  found.identity = identity;
  if (depth == Inspect::kHeaderAndBlocks) return check_blocks(file, header, std::move(found));
  found.finding = Finding::kSound;
  return found;
}

}  // namespace

Inspection inspect_chunk(const std::string& root, const RankName& rank, const ChunkKey& key,
                         Inspect depth) {
  const UniqueFd directory = open_chunk_directory(root, rank, key);
  if (directory.get() < 0) return unreadable({}, errno);
  const std::string name = chunk_file_name(key);
  // Without waiting, should it be a FIFO.
  constexpr int kFlags = O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC;
  const UniqueFd file(::openat(directory.get(), name.c_str(), kFlags));
  if (file.get() < 0) {
    if (errno == ELOOP || errno == ENXIO) return bad({}, "not a regular file");
    return unreadable({}, errno);
  }
  Inspection found = inspect(file.get(), rank, key, depth);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  return found;
}

}  // namespace lmkv
