#include "io/ring_setup.hpp"

#include <fcntl.h>

#include <cerrno>

#include "common/enter.hpp"

namespace lmkv {
namespace {

// The operations that lmkv needs. The youngest, kMakeDirectory, is in kernels from 5.15 on.
constexpr int kNeededOpcodes[] = {
    IORING_OP_OPENAT,  IORING_OP_READ,     IORING_OP_WRITE,           IORING_OP_READ_FIXED,
    IORING_OP_CLOSE,   IORING_OP_FSYNC,    IORING_OP_FALLOCATE,       IORING_OP_WRITE_FIXED,
    IORING_OP_STATX,   IORING_OP_RENAMEAT, IORING_OP_UNLINKAT,        IORING_OP_MKDIRAT,
    IORING_OP_FADVISE, IORING_OP_TIMEOUT,  IORING_OP_SYNC_FILE_RANGE, IORING_OP_OPENAT2};

constexpr unsigned kResolveNoSymlinks = 0x04;  // of openat2, which older headers lack

struct Setup {
  unsigned flags;
  const char* words;
};

// DEFER_TASKRUN (6.1) runs completions when this thread asks for them instead of interrupting it;
// COOP_TASKRUN (5.19) is the next best; older kernels take no flag.
constexpr Setup kSetups[] = {
    {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN,
     "single issuer, deferred task work"},
    {IORING_SETUP_COOP_TASKRUN, "cooperative task work"},
    {0, "plain"}};

// Whether the ring takes and completes an operation: a seccomp profile may let a ring be made and
// refuse to enter it.
int try_ring(io_uring& ring) {
  io_uring_prep_nop(io_uring_get_sqe(&ring));
  if (const int submitted = io_uring_submit_and_wait(&ring, 1); submitted < 0) return submitted;
  io_uring_cqe* cqe = nullptr;
  if (const int error = io_uring_peek_cqe(&ring, &cqe); error < 0) return error;
  const int result = cqe->res;
  io_uring_cqe_seen(&ring, cqe);
  return result;
}

int check_opcodes(io_uring& ring) {
  io_uring_probe* probe = io_uring_get_probe_ring(&ring);
  if (probe == nullptr) return -ENOSYS;
  int result = 0;
  for (const int opcode : kNeededOpcodes) {
    if (io_uring_opcode_supported(probe, opcode) == 0) result = -EOPNOTSUPP;
  }
  io_uring_free_probe(probe);
  return result;
}

}  // namespace

int open_ring(io_uring& ring, std::string& setup) {
  int error = -EINVAL;
  for (const Setup& attempt : kSetups) {
    error = io_uring_queue_init(kRingEntries, &ring, attempt.flags);
    setup = attempt.words;
    if (error != -EINVAL) break;
  }
  if (error < 0) return error;
  error = check_opcodes(ring);
  if (error == 0) error = try_ring(ring);
  if (error < 0) {
    io_uring_queue_exit(&ring);
    return error;
  }
  // The thread's own short name for the ring (5.18): entering it looks no descriptor up.
  if (io_uring_register_ring_fd(&ring) == 1) setup += ", registered ring";
  return 0;
}

void prepare_entry(io_uring_sqe* sqe, Operation& op, int slab) {
  static open_how without_links = {kEnterFlags, 0, kResolveNoSymlinks};
  const auto length = static_cast<unsigned>(op.length);
  const int directory = op.directory;
  const char* const path = op.path == nullptr ? nullptr : op.path + op.skip;
  switch (op.kind) {
    case OperationKind::kEnter:
      if (directory == AT_FDCWD) {
        io_uring_prep_openat(sqe, directory, path, kEnterFlags, 0);
      } else {
        io_uring_prep_openat2(sqe, directory, path, &without_links);
      }
      break;
    case OperationKind::kOpen: io_uring_prep_openat(sqe, directory, path, op.flags, op.mode); break;
    case OperationKind::kRead:
      if (slab >= 0) {
        io_uring_prep_read_fixed(sqe, op.descriptor, op.buffer, length, op.offset, slab);
      } else {
        io_uring_prep_read(sqe, op.descriptor, op.buffer, length, op.offset);
      }
      break;
    case OperationKind::kWrite:
      if (slab >= 0) {
        io_uring_prep_write_fixed(sqe, op.descriptor, op.buffer, length, op.offset, slab);
      } else {
        io_uring_prep_write(sqe, op.descriptor, op.buffer, length, op.offset);
      }
      break;
    case OperationKind::kAllocate:
      io_uring_prep_fallocate(sqe, op.descriptor, 0, 0, static_cast<off_t>(op.length));
      break;
    case OperationKind::kSync:
      io_uring_prep_fsync(sqe, op.descriptor, IORING_FSYNC_DATASYNC);
      break;
    case OperationKind::kWriteBack:
      io_uring_prep_sync_file_range(
          sqe, op.descriptor, 0, 0,
          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
      break;
    case OperationKind::kDropPages:
      io_uring_prep_fadvise(sqe, op.descriptor, 0, 0, POSIX_FADV_DONTNEED);
      break;
    case OperationKind::kClose: io_uring_prep_close(sqe, op.descriptor); break;
    case OperationKind::kStat:
      io_uring_prep_statx(sqe, directory, path, AT_SYMLINK_NOFOLLOW | op.flags, kStatMask,
                          op.status);
      break;
    case OperationKind::kRename:
      io_uring_prep_renameat(sqe, directory, path, directory, op.target + op.skip, 0);
      break;
    case OperationKind::kMakeDirectory: io_uring_prep_mkdirat(sqe, directory, path, op.mode); break;
    case OperationKind::kUnlink: io_uring_prep_unlinkat(sqe, directory, path, 0); break;
    case OperationKind::kRemoveDirectory:
      io_uring_prep_unlinkat(sqe, directory, path, AT_REMOVEDIR);
      break;
    case OperationKind::kPause:
      static_assert(sizeof(timespec) == sizeof(__kernel_timespec));
      io_uring_prep_timeout(sqe, reinterpret_cast<__kernel_timespec*>(&op.pause), 0, 0);
      break;
    case OperationKind::kDefer: io_uring_prep_nop(sqe); break;
    case OperationKind::kSetModified:
    case OperationKind::kSetMode: break;
  }
}

}  // namespace lmkv
