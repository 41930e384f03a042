#include "store/inspection.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "common/posix.hpp"
#include "common/unique_fd.hpp"

namespace lmkv {
namespace {

// Not even of the largest models has one block so much KV.
constexpr std::uint64_t kLargestBlock = std::uint64_t{1} << 30;

Inspection bad(Inspection found, std::string_view text) {
  found.finding = Finding::kBad;
  found.text = text;
  return found;
}

Inspection unreadable(Inspection found, int error) {
  found.finding = is_gone(error) ? Finding::kGone : Finding::kUnreadable;
  found.text = std::strerror(error);
  return found;
}

// All of `buffer`: 0, or an errno; ENODATA where the file ends before.
int read_at(int file, std::span<std::byte> buffer, std::uint64_t offset) {
  while (!buffer.empty()) {
    const ssize_t got = ::pread(file, buffer.data(), buffer.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) return ENODATA;
    buffer = buffer.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return 0;
}

Inspection check_blocks(int file, std::span<const std::byte> header, Inspection found) {
  std::vector<std::byte> block(found.identity.block_bytes);
  for (std::uint32_t i = 0; i < found.identity.block_count; ++i) {
    const std::uint64_t offset = kHeaderBytes + i * found.identity.block_bytes;
    if (const int error = read_at(file, block, offset); error == ENODATA) {
      return bad(std::move(found), "the file ends early");
    } else if (error != 0) {
      return unreadable(std::move(found), error);
    }
    if (!is_block_sound(header, i, block)) {
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
  if (const int error = read_at(file, header, 0); error == ENODATA) {
    return bad(std::move(found), "the file ends early");
  } else if (error != 0) {
    return unreadable(std::move(found), error);
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
  if (identity.block_bytes > kLargestBlock || identity.file_bytes() != found.bytes) {
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
