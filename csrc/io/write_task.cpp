// What is done to a file that is published.
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

std::string parent_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

class WriteTask final : public FileTask {
 public:
  WriteTask(FileIo& owner, FileWrite request)
      : FileTask(owner, Lane::kWrite, request.bytes), request_(std::move(request)) {}

  void report() override { request_.done(std::move(status_), outcome_); }
  void cancel() override { request_.done(Status::cancelled(), FileWrite::Outcome::kFailed); }

 private:
  [[nodiscard]] const std::string& path() const override { return request_.path; }

  void entered(int result) override {
    if (is_lost_directory(result)) return admitted([this] { remake_tree(); });
    if (result < 0) return fail(-result, "directory of");
    // A client may remember a file that another host has evicted.
    step(stat_operation(request_.path, found_, kAskServer), [this](int looked) {
      if (looked == 0 && is_whole()) return already_there();
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
      if (is_lost_directory(result)) return remake_tree();
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
    step(stat_operation(directory_itself_, found_, kAskServer), [this, failure](int) {
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
    discard([this] { remake_tree(); });  // with it the file went, too
  }

  void published() {
    if (request_.modified_ns == 0 || !is_long_ago(request_.modified_ns)) return written();
    renew(request_.path, request_.modified_ns, [this](int set) {
      if (set < 0) note_touch(set);
      written();
    });
  }

  void written() { end(Status::ok(), FileWrite::Outcome::kWritten); }

  // Makes what is missing on the way to the file, enters its directory, and opens it.
  void remake_tree() {
    made_directories_ = true;
    enter(root(), [this](int entered) {
      if (entered < 0) return fail(-entered, "directory of");
      step(stat_operation(root_itself_, found_), [this](int result) {
        if (result < 0) return fail(-result, "stat root");
        const FilesystemId here{found_.stx_dev_major, found_.stx_dev_minor};
        if (place().has_vanished(here)) return fail(ENODEV, "root");
        make_directories(0);
      });
    });
  }

  // Each from its parent, so that none is made behind a link.
  void make_directories(std::size_t index) {
    if (index == request_.directories.size()) return enter_again();
    enter(parent_of(request_.directories[index]), [this, index](int entered) {
      if (entered < 0) return fail(-entered, "directory of");
      make_directory(index);
    });
  }

  void make_directory(std::size_t index) {
    const mode_t mode = directory_mode_of(access());
    const std::string& directory = request_.directories[index];
    step(path_operation(OperationKind::kMakeDirectory, directory, mode),
         [this, index, mode, &directory](int result) {
           if (result < 0 && result != -EEXIST) return fail(-result, "mkdir");
           if (result < 0 || access() == Access::kPrivate) return make_directories(index + 1);
           step(path_operation(OperationKind::kSetMode, directory, mode), [this, index](int set) {
             if (set < 0) return fail(-set, "chmod");
             make_directories(index + 1);
           });
         });
  }

  void enter_again() {
    enter(parent_of(request_.path), [this](int result) {
      if (result < 0) return fail(-result, "directory of");
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

  // Where no temporary file can be.
  void fail(int error, std::string_view operation) {
    end(Status::io(error, operation, request_.temporary), FileWrite::Outcome::kFailed);
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
  // And not a link in their places.
  const std::string root_itself_ = root() + "/.";
  const std::string directory_itself_ = parent_of(request_.path) + "/.";
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

std::unique_ptr<FileTask> make_write_task(FileIo& owner, FileWrite request) {
  return std::make_unique<WriteTask>(owner, std::move(request));
}

}  // namespace lmkv
