// What is done to whole files: one is read, or published.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "common/clocks.hpp"
#include "common/posix.hpp"
#include "io/file_operations.hpp"
#include "io/file_task.hpp"

namespace lmkv {
namespace {

// A temporary file that has a time as old as this might look abandoned.
bool is_long_ago(std::int64_t modified_ns) {
  return modified_ns < system_now_ns() - kClocksDiffer.count() / 2;
}

class ReadTask final : public FileTask {
 public:
  ReadTask(FileIo& owner, FileRead request)
      : FileTask(owner, Lane::kRead, request.bytes, request.group), request_(std::move(request)) {}

  // The type is looked at before the file is opened: opening a FIFO would wait for a writer.
  void start() override {
    step(stat_operation(request_.path, found_), [this](int result) {
      if (result < 0) return fail(-result, "stat");
      if (!S_ISREG(found_.stx_mode)) return end(bad("not a regular file"));
      if (found_.stx_size != bytes()) return end(bad("file of an unexpected size"));
      open();
    });
  }

  void report() override { request_.done(std::move(status_)); }
  void cancel() override { request_.done(Status::cancelled()); }
  // The report verifies checksums for milliseconds: what is to be submitted goes first.
  void conclude() override {
    Operation op;
    op.kind = OperationKind::kDefer;
    step(op, [this](int) { retire(); });
  }

 private:
  void open() {
    caching_ = caching();
    step(open_operation(request_.path, O_RDONLY, caching_), [this](int result) {
      if (result == -EINVAL && caching_ == Caching::kDirect) {
        refuse_direct();
        return open();
      }
      if (result == -ELOOP) return end(bad("a symbolic link"));
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

class WriteTask final : public FileTask {
 public:
  WriteTask(FileIo& owner, FileWrite request)
      : FileTask(owner, Lane::kWrite, request.bytes), request_(std::move(request)) {}

  // A client may remember a file that another host has evicted.
  void start() override {
    step(stat_operation(request_.path, found_, kAskServer), [this](int result) {
      if (result == 0 && is_whole()) return already_there();
      if (request_.admit && !request_.admit()) {
        return end(Status::full(), FileWrite::Outcome::kFailed);
      }
      open();
    });
  }

  void report() override { request_.done(std::move(status_), outcome_); }
  void cancel() override { request_.done(Status::cancelled(), FileWrite::Outcome::kFailed); }

 private:
  [[nodiscard]] bool is_whole() const {
    return S_ISREG(found_.stx_mode) && found_.stx_size == bytes();
  }

  void already_there() {
    if (request_.modified_ns == 0) return end(Status::ok(), FileWrite::Outcome::kAlreadyThere);
    const std::int64_t renewed = renewed_time(found_, request_.modified_ns);
    if (renewed == nanoseconds(found_.stx_mtime)) {
      return end(Status::ok(), FileWrite::Outcome::kAlreadyThere);
    }
    renew(request_.path, renewed, [this](int result) {
      note_touch(result);
      end(Status::ok(), FileWrite::Outcome::kAlreadyThere);
    });
  }

  void open() {
    caching_ = caching();
    const int flags = O_WRONLY | O_CREAT | O_EXCL;
    const Operation op =
        open_operation(request_.temporary, flags, caching_, file_mode_of(access()));
    step(op, [this](int result) {
      if (is_lost_directory(result)) return remake_tree([this] { open(); });
      if (result == -EINVAL && caching_ == Caching::kDirect) return again_buffered();
      // Nobody else has this name: a server has made the file, but its first answer was lost.
      if (result == -EEXIST && !created_again_) {
        created_again_ = true;
        return discard([this] { open(); });
      }
      if (result < 0) return abandon(-result, "create");
      descriptor_ = result;
      set_mode();
    });
  }

  // At the first time: there is a directory missing on the way, or it is another one by now.
  [[nodiscard]] bool is_lost_directory(int result) const {
    return (result == -ENOENT || result == -ESTALE) && !made_directories_;
  }

  // Whatever the umask takes away of it. Before the file has its name.
  void set_mode() {
    if (access() == Access::kPrivate) return allocate();
    Operation op = descriptor_operation(OperationKind::kSetMode, descriptor_);
    op.mode = file_mode_of(access());
    step(op, [this](int result) {
      if (result < 0) return abandon(-result, "chmod");
      allocate();
    });
  }

  // The size is set once, so that concurrent direct writes extend nothing and ENOSPC comes early.
  void allocate() {
    Operation op = descriptor_operation(OperationKind::kAllocate, descriptor_);
    op.length = bytes();
    step(op, [this](int result) {
      const bool unsupported = result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL;
      if (result < 0 && !unsupported) return abandon(-result, "allocate");
      // The seam has one buffer pointer for both directions; kWrite only reads through it.
      auto* const buffer = const_cast<std::byte*>(request_.buffer);
      transfer(OperationKind::kWrite, descriptor_, buffer, caching_, [this](int outcome) {
        if (outcome == EINVAL && caching_ == Caching::kDirect) return again_buffered();
        if (outcome != 0) return abandon(outcome, "write");
        sync();
      });
    });
  }

  void sync() {
    if (publish() == Publish::kRename) return write_back();
    step(descriptor_operation(OperationKind::kSync, descriptor_), [this](int result) {
      if (result < 0) return abandon(-result, "sync");
      drop_pages();
    });
  }

  // Only written pages can be dropped. A filesystem without a page cache, or with one of its own,
  // may refuse both steps; but a disk that did not take the pages says it here, and only once.
  void write_back() {
    if (caching_ == Caching::kDirect) return set_modified();
    step(descriptor_operation(OperationKind::kWriteBack, descriptor_), [this](int result) {
      const bool refused =
          result == -EINVAL || result == -ENOSYS || result == -EOPNOTSUPP || result == -ESPIPE;
      if (result < 0 && !refused) return abandon(-result, "write back");
      drop_pages();
    });
  }

  void drop_pages() {
    if (caching_ == Caching::kDirect) return set_modified();
    step(descriptor_operation(OperationKind::kDropPages, descriptor_),
         [this](int) { set_modified(); });
  }

  // Behind the last write, which sets it as well. A file that keeps the time of its writing is
  // younger than it should be, and as good as any other.
  void set_modified() {
    if (request_.modified_ns == 0 || is_long_ago(request_.modified_ns)) return close();
    Operation op = set_modified_operation(request_.modified_ns);
    op.descriptor = descriptor_;
    step(op, [this](int result) {
      if (result < 0) note_touch(result);
      close();
    });
  }

  void close() {
    step(descriptor_operation(OperationKind::kClose, std::exchange(descriptor_, -1)),
         [this](int result) {
           if (result < 0) return abandon(-result, "close");
           rename();
         });
  }

  void rename() {
    Operation op = path_operation(OperationKind::kRename, request_.temporary);
    op.target = request_.path.c_str();
    step(op, [this](int result) {
      if (result == -EISDIR && !removed_obstacle_) return remove_obstacle();
      if (result < 0) return look_what_happened(result);
      published();
    });
  }

  // A rename may have been made though it failed: a server whose answer was lost is asked again,
  // and finds no such file, or the client gives up. The directory is asked for first, since what
  // the client knows of the names in it is from before.
  void look_what_happened(int failure) {
    step(stat_operation(request_.directories.back(), found_, kAskServer), [this, failure](int) {
      step(stat_operation(request_.temporary, found_), [this, failure](int temporary) {
        if (!is_gone(-temporary)) return not_renamed(failure);
        step(stat_operation(request_.path, found_, kAskServer), [this, failure](int result) {
          if (result != 0 || !is_whole()) return not_renamed(failure);
          published();
        });
      });
    });
  }

  void not_renamed(int failure) {
    if (!is_lost_directory(failure)) return abandon(-failure, "rename");
    discard([this] { remake_tree([this] { open(); }); });  // with it the file went, too
  }

  void published() {
    if (request_.modified_ns == 0 || !is_long_ago(request_.modified_ns)) return written();
    renew(request_.path, request_.modified_ns, [this](int set) {
      if (set < 0) note_touch(set);
      written();
    });
  }

  void written() { end(Status::ok(), FileWrite::Outcome::kWritten); }

  void remake_tree(std::function<void()> next) {
    made_directories_ = true;
    step(stat_operation(request_.root, found_), [this, next = std::move(next)](int result) {
      if (result < 0) return abandon(-result, "stat root");
      const FilesystemId here{found_.stx_dev_major, found_.stx_dev_minor};
      if (place().has_vanished(here)) return abandon(ENODEV, "root");
      make_directories(0, next);
    });
  }

  void make_directories(std::size_t index, std::function<void()> next) {
    if (index == request_.directories.size()) return next();
    const mode_t mode = directory_mode_of(access());
    const std::string& directory = request_.directories[index];
    step(path_operation(OperationKind::kMakeDirectory, directory, mode),
         [this, index, mode, next = std::move(next)](int result) {
           if (result < 0 && result != -EEXIST) return abandon(-result, "mkdir");
           if (result < 0 || access() == Access::kPrivate) return make_directories(index + 1, next);
           step(path_operation(OperationKind::kSetMode, request_.directories[index], mode),
                [this, index, next](int set) {
                  if (set < 0) return abandon(-set, "chmod");
                  make_directories(index + 1, next);
                });
         });
  }

  // An empty directory in the file's place; one with something in it is not ours to touch.
  void remove_obstacle() {
    removed_obstacle_ = true;
    step(path_operation(OperationKind::kRemoveDirectory, request_.path), [this](int result) {
      if (result < 0) return abandon(-result, "rmdir");
      rename();
    });
  }

  void again_buffered() {
    refuse_direct();
    discard([this] { open(); });
  }

  void abandon(int error, std::string_view operation) {
    status_ = Status::io(error, operation, request_.temporary);
    discard([this] { end(std::move(status_), FileWrite::Outcome::kFailed); });
  }

  // Closes and unlinks the temporary file, if there is one, then goes on.
  void discard(std::function<void()> next) {
    const auto unlink = [this, next = std::move(next)](int) {
      step(path_operation(OperationKind::kUnlink, request_.temporary), [next](int) { next(); });
    };
    if (descriptor_ < 0) return unlink(0);
    step(descriptor_operation(OperationKind::kClose, std::exchange(descriptor_, -1)), unlink);
  }

  void end(Status status, FileWrite::Outcome outcome) {
    status_ = std::move(status);
    outcome_ = outcome;
    finish();
  }

  FileWrite request_;
  struct statx found_{};
  Caching caching_ = Caching::kDirect;
  int descriptor_ = -1;
  bool made_directories_ = false;
  bool created_again_ = false;
  bool removed_obstacle_ = false;
  Status status_ = Status::cancelled();
  FileWrite::Outcome outcome_ = FileWrite::Outcome::kFailed;
};

}  // namespace

std::unique_ptr<FileTask> make_read_task(FileIo& owner, FileRead request) {
  return std::make_unique<ReadTask>(owner, std::move(request));
}

std::unique_ptr<FileTask> make_write_task(FileIo& owner, FileWrite request) {
  return std::make_unique<WriteTask>(owner, std::move(request));
}

}  // namespace lmkv
