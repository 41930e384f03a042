// The three things done to files: read one whole, publish one whole, remove one.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "common/clocks.hpp"
#include "common/posix.hpp"
#include "io/file_task.hpp"

namespace lmkv {
namespace {

constexpr int kCommonFlags = O_NOFOLLOW | O_CLOEXEC;
constexpr mode_t kFileMode = 0600;
constexpr mode_t kDirectoryMode = 0700;

int with_caching(int flags, Caching caching) {
  return flags | kCommonFlags | (caching == Caching::kDirect ? O_DIRECT : 0);
}

Operation open_operation(const std::string& path, int flags) {
  Operation op;
  op.kind = OperationKind::kOpen;
  op.path = path.c_str();
  op.flags = flags;
  op.mode = kFileMode;
  return op;
}

Operation path_operation(OperationKind kind, const std::string& path) {
  Operation op;
  op.kind = kind;
  op.path = path.c_str();
  op.mode = kDirectoryMode;  // used by kMakeDirectory alone
  return op;
}

Operation descriptor_operation(OperationKind kind, int descriptor) {
  Operation op;
  op.kind = kind;
  op.descriptor = descriptor;
  return op;
}

Operation set_modified_operation(std::int64_t modified_ns) {
  Operation op;
  op.kind = OperationKind::kSetModified;
  op.modified_ns = modified_ns;
  return op;
}

std::int64_t modified_ns_of(const struct statx& found) {
  return nanoseconds(found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec);
}

// A temporary file that has a time as old as this might look abandoned.
bool is_long_ago(std::int64_t modified_ns) {
  return modified_ns < system_now_ns() - kClocksDiffer.count() / 2;
}

Operation stat_operation(const std::string& path, struct statx& status) {
  Operation op = path_operation(OperationKind::kStat, path);
  op.status = &status;
  return op;
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
    step(open_operation(request_.path, with_caching(O_RDONLY, caching_)), [this](int result) {
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
  Status status_ = Status::cancelled();
};

class WriteTask final : public FileTask {
 public:
  WriteTask(FileIo& owner, FileWrite request)
      : FileTask(owner, Lane::kWrite, request.bytes), request_(std::move(request)) {}

  void start() override {
    step(stat_operation(request_.path, found_), [this](int result) {
      const bool whole = result == 0 && S_ISREG(found_.stx_mode) && found_.stx_size == bytes();
      if (whole) return already_there();
      if (request_.admit && !request_.admit()) {
        return end(Status::full(), FileWrite::Outcome::kFailed);
      }
      open();
    });
  }

  void report() override { request_.done(std::move(status_), outcome_); }
  void cancel() override { request_.done(Status::cancelled(), FileWrite::Outcome::kFailed); }

 private:
  void already_there() {
    const std::int64_t found = modified_ns_of(found_);
    const std::int64_t renewed =
        request_.modified_ns == 0 ? found : renewed_time(found, request_.modified_ns);
    if (renewed == found) return end(Status::ok(), FileWrite::Outcome::kAlreadyThere);
    set_modified_of_published(renewed, [this](int result) {
      note_touch(result);
      end(Status::ok(), FileWrite::Outcome::kAlreadyThere);
    });
  }

  void set_modified_of_published(std::int64_t modified_ns, Continuation next) {
    Operation op = set_modified_operation(modified_ns);
    op.path = request_.path.c_str();
    step(op, std::move(next));
  }

  void open() {
    caching_ = caching();
    const int flags = with_caching(O_WRONLY | O_CREAT | O_EXCL, caching_);
    step(open_operation(request_.temporary, flags), [this](int result) {
      if (result == -ENOENT && !made_directories_) return remake_tree([this] { open(); });
      if (result == -EINVAL && caching_ == Caching::kDirect) return again_buffered();
      if (result < 0) return abandon(-result, "create");
      descriptor_ = result;
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
      if (result == -ENOENT && !made_directories_) {  // with its directory the file went, too
        return discard([this] { remake_tree([this] { open(); }); });
      }
      if (result == -EISDIR && !removed_obstacle_) return remove_obstacle();
      if (result < 0) return abandon(-result, "rename");
      if (request_.modified_ns == 0 || !is_long_ago(request_.modified_ns)) return written();
      set_modified_of_published(request_.modified_ns, [this](int set) {
        if (set < 0) note_touch(set);
        written();
      });
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
    step(path_operation(OperationKind::kMakeDirectory, request_.directories[index]),
         [this, index, next = std::move(next)](int result) {
           if (result < 0 && result != -EEXIST) return abandon(-result, "mkdir");
           make_directories(index + 1, next);
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
  bool removed_obstacle_ = false;
  Status status_ = Status::cancelled();
  FileWrite::Outcome outcome_ = FileWrite::Outcome::kFailed;
};

class RemoveTask final : public FileTask {
 public:
  RemoveTask(FileIo& owner, std::string path, std::function<void(Status)> done)
      : FileTask(owner, Lane::kRemove, 0), path_(std::move(path)), done_(std::move(done)) {}

  void start() override {
    step(path_operation(OperationKind::kUnlink, path_), [this](int result) {
      if (result != -EISDIR) return end(result, "unlink");
      step(path_operation(OperationKind::kRemoveDirectory, path_),
           [this](int removed) { end(removed, "rmdir"); });
    });
  }

  void report() override { done_(std::move(status_)); }
  void cancel() override { done_(Status::cancelled()); }

 private:
  void end(int result, std::string_view operation) {
    const bool gone = result == 0 || is_gone(-result);
    status_ = gone ? Status::ok() : Status::io(-result, operation, path_);
    finish();
  }

  std::string path_;
  std::function<void(Status)> done_;
  Status status_ = Status::cancelled();
};

class TouchTask final : public FileTask {
 public:
  TouchTask(FileIo& owner, std::string path, std::int64_t modified_ns)
      : FileTask(owner, Lane::kTouch, 0), path_(std::move(path)), modified_ns_(modified_ns) {}

  // Most files of a busy prefix carry the time already: a look is cheaper than a change.
  void start() override {
    step(stat_operation(path_, found_), [this](int result) {
      if (result < 0) return end(result);
      const std::int64_t found = modified_ns_of(found_);
      const std::int64_t renewed = renewed_time(found, modified_ns_);
      if (!S_ISREG(found_.stx_mode) || renewed == found) return finish();
      Operation op = set_modified_operation(renewed);
      op.path = path_.c_str();
      step(op, [this](int set) { end(set); });
    });
  }

  void report() override {}
  void cancel() override {}

 private:
  void end(int result) {
    if (!is_gone(-result)) note_touch(result);
    finish();
  }

  std::string path_;
  std::int64_t modified_ns_;
  struct statx found_{};
};

}  // namespace

std::unique_ptr<FileTask> make_read_task(FileIo& owner, FileRead request) {
  return std::make_unique<ReadTask>(owner, std::move(request));
}

std::unique_ptr<FileTask> make_write_task(FileIo& owner, FileWrite request) {
  return std::make_unique<WriteTask>(owner, std::move(request));
}

std::unique_ptr<FileTask> make_remove_task(FileIo& owner, std::string path,
                                           std::function<void(Status)> done) {
  return std::make_unique<RemoveTask>(owner, std::move(path), std::move(done));
}

std::unique_ptr<FileTask> make_touch_task(FileIo& owner, std::string path,
                                          std::int64_t modified_ns) {
  return std::make_unique<TouchTask>(owner, std::move(path), modified_ns);
}

}  // namespace lmkv
