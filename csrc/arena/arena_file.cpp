#include "arena/arena_file.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <utility>

#include "device/numa.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; glibc 2.35
#endif

namespace lmkv {
namespace {

constexpr std::uint64_t kHugePageBytes = 2 << 20;
constexpr std::size_t kPiece = 2 << 20;        // in one call, for whose time none can map anything
constexpr std::uint64_t kPartForOthers = 16;   // of the filesystem, one in so many bytes
constexpr std::uint32_t kMostSlots = 1 << 30;  // twice as many buckets still have 32 bits

std::uint64_t round_up(std::uint64_t bytes, std::uint64_t to) { return (bytes + to - 1) / to * to; }

ArenaError error(const std::string& path, const std::string& what) {
  return ArenaError(path + ": " + what);
}

// For an arena of about so many bytes, in pages of the filesystem's.
ArenaHeader lay_out(std::uint64_t slab_bytes, std::uint64_t bytes, std::uint32_t nodes,
                    std::uint64_t page_bytes) {
  ArenaHeader header{};
  header.magic = kArenaMagic;
  header.layout = kArenaLayout;
  header.control_bytes = sizeof(ArenaControl);
  header.slab_bytes = slab_bytes;
  header.slot_count =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes / slab_bytes, kMostSlots));
  header.bucket_count = std::bit_ceil(std::max<std::uint32_t>(header.slot_count, 2) * 2);
  header.node_count = nodes;
  header.slots_offset = kPageBytes + round_up_to_page(sizeof(ArenaControl));
  header.buckets_offset = header.slots_offset + header.slot_count * sizeof(ArenaSlot);
  const std::uint64_t end = header.buckets_offset + header.bucket_count * sizeof(Shared32);
  header.slabs_offset = round_up(end, std::max(kHugePageBytes, page_bytes));
  header.total_bytes = round_up(header.slabs_offset + header.slot_count * slab_bytes, page_bytes);
  return header;
}

// Bytes of a page of the memory filesystem that the file is on. Throws for any other filesystem:
// it would be written to a disk, and outlive its members' locks.
std::uint64_t memory_page_bytes(int fd, const std::string& path) {
  struct statfs found{};
  if (::fstatfs(fd, &found) != 0) throw error(path, std::strerror(errno));
  const auto type = static_cast<unsigned long>(found.f_type);
  if (type == HUGETLBFS_MAGIC) return static_cast<std::uint64_t>(found.f_bsize);
  if (type == TMPFS_MAGIC) return kPageBytes;
  throw error(path, "neither tmpfs nor hugetlbfs: host memory that is shared has to be in memory");
}

std::uint32_t numa_nodes() {
  std::uint32_t nodes = 0;
  while (nodes < kMostArenaNodes &&
         std::filesystem::exists("/sys/devices/system/node/node" + std::to_string(nodes))) {
    ++nodes;
  }
  return std::max<std::uint32_t>(1, nodes);
}

std::byte* map_all(int fd, std::uint64_t bytes) {
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
}

void check_owner(const struct stat& found, const ArenaPlace& place, const std::string& path) {
  if (!S_ISREG(found.st_mode)) throw error(path, "not a file");
  const bool is_groups = place.access == Access::kGroup;
  const bool is_ours = is_groups ? found.st_gid == ::getegid() : found.st_uid == ::geteuid();
  if (!is_ours) throw error(path, "somebody else's");
  const mode_t allowed = file_mode_of(place.access);
  if ((found.st_mode & 0777 & ~allowed) != 0) throw error(path, "others may use it: chmod it");
}

void check_header(const ArenaHeader& header, std::uint64_t file_bytes, const ArenaPlace& place,
                  std::uint64_t page_bytes, const std::string& path) {
  if (header.magic != kArenaMagic) throw error(path, "no arena");
  if (header.layout != kArenaLayout) {
    throw error(path, "made by another version of lmkv (layout " + std::to_string(header.layout) +
                          ", not " + std::to_string(kArenaLayout) + ")");
  }
  const bool fits = header.slot_count >= kFewestArenaSlots && header.slot_count <= kMostSlots &&
                    header.node_count >= 1 && header.node_count <= kMostArenaNodes &&
                    header.slab_bytes == place.slab_bytes;
  const ArenaHeader wanted = fits
                                 ? lay_out(header.slab_bytes, header.slot_count * header.slab_bytes,
                                           header.node_count, page_bytes)
                                 : ArenaHeader{};
  if (std::memcmp(&header, &wanted, sizeof header) != 0 || header.total_bytes != file_bytes) {
    throw error(path, "not an arena for slabs of " + std::to_string(place.slab_bytes) + " bytes");
  }
}

}  // namespace

std::string ArenaPlace::path() const {
  const std::string whose =
      access == Access::kGroup ? "g" + std::to_string(::getegid()) : std::to_string(::geteuid());
  return directory + "/lmkv-" + whose + "-" + std::to_string(slab_bytes) + ".arena";
}

ArenaFile::ArenaFile(UniqueFd fd, const ArenaSeat& seat, std::string path, std::byte* base,
                     std::size_t bytes, bool is_new)
    : fd_(std::move(fd)),
      seat_(seat),
      path_(std::move(path)),
      base_(base),
      bytes_(bytes),
      is_new_(is_new) {}

ArenaFile::ArenaFile(ArenaFile&& other) noexcept
    : fd_(std::move(other.fd_)),
      seat_(other.seat_),
      path_(std::move(other.path_)),
      base_(std::exchange(other.base_, nullptr)),
      bytes_(other.bytes_),
      is_new_(other.is_new_) {}

ArenaFile::~ArenaFile() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}

ArenaFile ArenaFile::open_or_create(const ArenaPlace& place, std::uint64_t bytes) {
  // Another may make it, or take it away, in between.
  for (int tries = 0; tries < 100; ++tries) {
    if (auto found = open_existing(place)) return std::move(*found);
    if (auto made = create(place, bytes)) return std::move(*made);
  }
  throw error(place.path(), "comes and goes");
}

std::optional<ArenaFile> ArenaFile::open_existing(const ArenaPlace& place) {
  const std::string path = place.path();
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (fd.get() < 0) {
    if (errno == ENOENT) return std::nullopt;
    throw error(path, std::strerror(errno));
  }
  struct stat found{};
  if (::fstat(fd.get(), &found) != 0) throw error(path, std::strerror(errno));
  check_owner(found, place, path);
  const std::uint64_t page_bytes = memory_page_bytes(fd.get(), path);
  const auto file_bytes = static_cast<std::uint64_t>(found.st_size);
  if (file_bytes < kHugePageBytes) throw error(path, "no arena");
  ArenaFile arena = map(std::move(fd), place, file_bytes, false);
  check_header(arena.header(), file_bytes, place, page_bytes, path);
  if (arena.slots().control().retired.load(std::memory_order_acquire) != 0) return std::nullopt;
  return arena;
}

ArenaFile ArenaFile::map(UniqueFd fd, const ArenaPlace& place, std::uint64_t bytes, bool is_new) {
  std::byte* const base = map_all(fd.get(), bytes);
  if (base == nullptr) throw error(place.path(), std::string("mmap: ") + std::strerror(errno));
  const std::optional<ArenaSeat> seat = take_arena_seat(fd.get());
  if (!seat) {
    ::munmap(base, bytes);
    throw error(place.path(), "too many processes use it");
  }
  return {std::move(fd), *seat, place.path(), base, bytes, is_new};
}

// Made without a name and linked when it is whole: nobody sees less, and a maker that dies leaves
// nothing. Empty if another was quicker.
std::optional<ArenaFile> ArenaFile::create(const ArenaPlace& place, std::uint64_t bytes) {
  const std::string path = place.path();
  const mode_t mode = file_mode_of(place.access);
  UniqueFd fd(::open(place.directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, mode));
  if (fd.get() < 0) throw error(place.directory, std::strerror(errno));
  ::fchmod(fd.get(), mode);  // whatever the umask is
  const ArenaHeader header =
      lay_out(place.slab_bytes, bytes, numa_nodes(), memory_page_bytes(fd.get(), place.directory));
  if (header.slot_count < kFewestArenaSlots) {
    throw error(path, "too small: it holds fewer than two chunks of " +
                          std::to_string(place.slab_bytes) + " bytes");
  }
  if (::ftruncate(fd.get(), static_cast<off_t>(header.total_bytes)) != 0) {
    throw error(path, std::string("ftruncate: ") + std::strerror(errno));
  }
  if (const int failed = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(header.slabs_offset))) {
    throw error(path, std::string("no room in ") + place.directory + ": " + std::strerror(failed));
  }
  ArenaFile arena = map(std::move(fd), place, header.total_bytes, true);
  std::memcpy(arena.base_, &header, sizeof header);
  ArenaSlots<> slots = arena.slots();  // its bytes are zeros
  slots.repair();
  slots.control().repairs.store(0, std::memory_order_release);
  for (std::uint32_t node = 0; header.node_count > 1 && node < header.node_count; ++node) {
    const std::uint64_t begin = std::uint64_t{header.slot_count} * node / header.node_count;
    const std::uint64_t end = std::uint64_t{header.slot_count} * (node + 1) / header.node_count;
    prefer_numa_node(arena.slabs().data() + begin * header.slab_bytes,
                     (end - begin) * header.slab_bytes, static_cast<int>(node));
  }
  const std::string self = "/proc/self/fd/" + std::to_string(arena.fd());
  if (::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) != 0) {
    if (errno == EEXIST) return std::nullopt;
    throw error(path, std::string("linkat: ") + std::strerror(errno));
  }
  return arena;
}

std::span<std::byte> ArenaFile::slabs() const {
  return {base_ + header().slabs_offset, header().slot_count * header().slab_bytes};
}

std::span<std::byte> ArenaFile::slab(std::uint32_t slot) const {
  return slabs().subspan(slot * header().slab_bytes, header().slab_bytes);
}

// Others have files there that they touch without asking first (vLLM, NCCL, PyTorch: /dev/shm), for
// which a filesystem without room is SIGBUS.
bool ArenaFile::has_room(std::uint64_t bytes) const {
  struct statfs found{};
  if (::fstatfs(fd(), &found) != 0 || found.f_blocks == 0) return true;  // or it has no limit
  const auto block = static_cast<std::uint64_t>(found.f_bsize);
  const std::uint64_t kept = found.f_blocks / kPartForOthers * block;
  return found.f_bavail * block >= bytes + kept;
}

int ArenaFile::give_pages(std::uint32_t slot, const std::stop_token& stop) const {
  if (!has_room(header().slab_bytes)) return ENOSPC;
  int failed = map_pages(slot, stop);
  // Somebody else may have found the same room.
  if (failed == 0 && !has_room(0)) failed = ENOSPC;
  if (failed == ENOSPC) take_pages(slot);
  return failed;
}

void ArenaFile::take_pages(std::uint32_t slot) const {
  const std::span<std::byte> bytes = slab(slot);
  const auto at = static_cast<off_t>(bytes.data() - base_);
  // If it cannot be done, they are there for the next who is given them.
  ::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
              static_cast<off_t>(bytes.size()));
}

int ArenaFile::map_pages(std::uint32_t slot, const std::stop_token& stop) const {
  const std::span<std::byte> bytes = slab(slot);
  for (std::size_t at = 0; at < bytes.size();) {
    if (stop.stop_requested()) return ECANCELED;
    const std::span<std::byte> piece = bytes.subspan(at, std::min(kPiece, bytes.size() - at));
    if (const int failed = populate(piece)) return failed;
    at += piece.size();
  }
  return 0;
}

int ArenaFile::populate(std::span<std::byte> bytes) const {
  // In huge pages where the filesystem has them; a touch that would raise SIGBUS is EFAULT here.
  if (::madvise(bytes.data(), bytes.size(), MADV_POPULATE_WRITE) == 0) return 0;
  if (errno == EFAULT || errno == ENOMEM) return ENOSPC;
  // Not posix_fallocate(3), which writes where the filesystem cannot: others' bytes may lie there.
  const auto at = static_cast<off_t>(bytes.data() - base_);
  int result = 0;
  do {
    result = ::fallocate(fd(), 0, at, static_cast<off_t>(bytes.size()));
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

}  // namespace lmkv
