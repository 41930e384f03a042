// What is done to a file that is read.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "common/posix.hpp"
#include "io/file_operations.hpp"
#include "io/file_task.hpp"

namespace lmkv {
namespace {

class ReadTask final : public FileTask {
 public:
  ReadTask(FileIo& owner, FileRead request)
      : FileTask(owner, Lane::kRead, request.bytes, request.group), request_(std::move(request)) {}

  void report() override { request_.done(std::move(status_)); }
  void cancel() override { request_.done(Status::cancelled()); }
  // The report verifies checksums for milliseconds: what is to be submitted goes first.
  void conclude() override {
    Operation op;
    op.kind = OperationKind::kDefer;
    step(op, [this](int) { retire(); });
  }

 private:
  [[nodiscard]] const std::string& path() const override { return request_.path; }

  // The type is looked at before the file is opened: opening a FIFO would wait for a writer.
  void entered(int result) override {
    if (result < 0) return fail(-result, "directory of");
    step(stat_operation(request_.path, found_), [this](int looked) {
      if (looked < 0) return fail(-looked, "stat");
      if (!S_ISREG(found_.stx_mode)) return end(bad("not a regular file"));
      if (found_.stx_size != bytes()) return end(bad("file of an unexpected size"));
      open();
    });
  }

  void open() {
    caching_ = caching();
    step(open_operation(request_.path, O_RDONLY, caching_), [this](int result) {
      if (result == -EINVAL && caching_ == Caching::kDirect) {
        refuse_direct();
        return open();
      }
      if (result == -ELOOP) return end(bad("a symbolic link"));
      // Somebody else's file: to be read by them, and nothing that is wrong with the directory.
      if (result == -EACCES || result == -EPERM) {
        return end(Status::no_permission(-result, request_.path));
      }
      if (result < 0) return fail(-result, "open");
      descriptor_ = result;
      transfer(OperationKind::kRead, descriptor_, request_.buffer, caching_,
               [this](int outcome) { drop_pages(outcome); });
    });
  }

  // The chunk goes to the KV cache: its copy in the page cache would displace what others need.
  void drop_pages(int outcome) {
    if (caching_ == Caching::kDirect) return close(outcome);
    step(descriptor_operation(OperationKind::kDropPages, descriptor_),
         [this, outcome](int) { close(outcome); });
  }

  void close(int outcome) {
    step(descriptor_operation(OperationKind::kClose, descriptor_), [this, outcome](int) {
      if (outcome == EINVAL && caching_ == Caching::kDirect) {
        refuse_direct();
        return open();
      }
      if (outcome == kEndOfFile) return end(bad("truncated file"));
      if (is_damaged(outcome)) return end(bad("unreadable file", outcome));
      if (outcome != 0) return fail(outcome, "read");
      end(Status::ok());
    });
  }

  [[nodiscard]] Status bad(std::string_view what, int error = 0) const {
    return Status::bad_chunk(request_.path, what, error);
  }
  void fail(int error, std::string_view operation) {
    if (error == ESTALE && !tried_again_) {  // another file may have its name by now
      tried_again_ = true;
      return start();
    }
    end(is_gone(error) ? Status::missing(request_.path)
                       : Status::io(error, operation, request_.path));
  }
  void end(Status status) {
    status_ = std::move(status);
    finish();
  }

  FileRead request_;
  struct statx found_{};
  Caching caching_ = Caching::kDirect;
  int descriptor_ = -1;
  bool tried_again_ = false;
  Status status_ = Status::cancelled();
};

}  // namespace

std::unique_ptr<FileTask> make_read_task(FileIo& owner, FileRead request) {
  return std::make_unique<ReadTask>(owner, std::move(request));
}

}  // namespace lmkv
