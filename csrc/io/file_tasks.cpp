// What is done to whole files: one is read, one is published.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "common/posix.hpp"
#include "io/file_task.hpp"
#include "io/operations.hpp"

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

Operation descriptor_operation(OperationKind kind, int descriptor) {
  Operation op;
  op.kind = kind;
  op.descriptor = descriptor;
  return op;
}

std::string parent_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

class ReadTask final : public FileTask {
 public:
  ReadTask(FileIo& owner, FileRead request)
      : FileTask(owner, Lane::kRead, request.bytes, request.group), request_(std::move(request)) {}

  void report() override { request_.done(std::move(status_)); }
  void cancel() override { request_.done(Status::cancelled()); }

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
    step(open_operation(request_.path, with_caching(O_RDONLY, caching_)), [this](int result) {
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

  void report() override { request_.done(std::move(status_), outcome_); }
  void cancel() override { request_.done(Status::cancelled(), FileWrite::Outcome::kFailed); }

 private:
  [[nodiscard]] const std::string& path() const override { return request_.path; }

  void entered(int result) override {
    if (result == -ENOENT) return admitted([this] { remake_tree(); });
    if (result < 0) return abandon(-result, "directory of");
    step(stat_operation(request_.path, found_), [this](int looked) {
      const bool whole = looked == 0 && S_ISREG(found_.stx_mode) && found_.stx_size == bytes();
      if (whole) return already_there();
      admitted([this] { open(); });
    });
  }

  template <typename F>
  void admitted(F&& next) {
    if (request_.admit && !request_.admit()) {
      return end(Status::full(), FileWrite::Outcome::kFailed);
    }
    next();
  }

  void already_there() {
    if (!is_older(found_, request_.modified_ns)) {
      return end(Status::ok(), FileWrite::Outcome::kAlreadyThere);
    }
    Operation op = set_modified_operation(request_.modified_ns);
    op.path = request_.path.c_str();
    step(op, [this](int result) {
      note_touch(result);
      end(Status::ok(), FileWrite::Outcome::kAlreadyThere);
    });
  }

  void open() {
    caching_ = caching();
    const int flags = with_caching(O_WRONLY | O_CREAT | O_EXCL, caching_);
    step(open_operation(request_.temporary, flags), [this](int result) {
      if (result == -ENOENT && !made_directories_) return remake_tree();
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
    if (request_.modified_ns == 0) return close();
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
        return discard([this] { remake_tree(); });
      }
      if (result == -EISDIR && !removed_obstacle_) return remove_obstacle();
      if (result < 0) return abandon(-result, "rename");
      end(Status::ok(), FileWrite::Outcome::kWritten);
    });
  }

  // Makes what is missing on the way to the file, enters its directory, and opens it.
  void remake_tree() {
    made_directories_ = true;
    enter(root(), [this](int entered) {
      if (entered < 0) return abandon(-entered, "directory of");
      step(stat_operation(root_itself_, found_), [this](int result) {
        if (result < 0) return abandon(-result, "stat root");
        const FilesystemId here{found_.stx_dev_major, found_.stx_dev_minor};
        if (here != filesystem()) return abandon(ENODEV, "root");
        make_directories(0);
      });
    });
  }

  // Each from its parent, so that none is made behind a link.
  void make_directories(std::size_t index) {
    if (index == request_.directories.size()) return enter_again();
    const std::string& directory = request_.directories[index];
    enter(parent_of(directory), [this, index, &directory](int entered) {
      if (entered < 0) return abandon(-entered, "directory of");
      Operation op = path_operation(OperationKind::kMakeDirectory, directory);
      op.mode = kDirectoryMode;
      step(op, [this, index](int made) {
        if (made < 0 && made != -EEXIST) return abandon(-made, "mkdir");
        make_directories(index + 1);
      });
    });
  }

  void enter_again() {
    enter(parent_of(request_.path), [this](int result) {
      if (result < 0) return abandon(-result, "directory of");
      open();
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
  const std::string root_itself_ = root() + "/.";  // and not a link in its place
  struct statx found_{};
  Caching caching_ = Caching::kDirect;
  int descriptor_ = -1;
  bool made_directories_ = false;
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
