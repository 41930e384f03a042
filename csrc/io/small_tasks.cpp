// What is done to files without their bytes: one is removed, or its time renewed.
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "common/posix.hpp"
#include "io/file_operations.hpp"
#include "io/file_task.hpp"

namespace lmkv {
namespace {

class RemoveTask final : public FileTask {
 public:
  RemoveTask(FileIo& owner, std::string path, std::function<void(Status)> done)
      : FileTask(owner, Lane::kRemove, 0), path_(std::move(path)), done_(std::move(done)) {}

  void report() override { done_(std::move(status_)); }
  void cancel() override { done_(Status::cancelled()); }

 private:
  [[nodiscard]] const std::string& path() const override { return path_; }

  void entered(int result) override {
    if (result < 0) return end(result, "directory of");
    step(path_operation(OperationKind::kUnlink, path_), [this](int unlinked) {
      if (unlinked != -EISDIR) return end(unlinked, "unlink");
      step(path_operation(OperationKind::kRemoveDirectory, path_),
           [this](int removed) { end(removed, "rmdir"); });
    });
  }

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

  void report() override {}
  void cancel() override {}

 private:
  [[nodiscard]] const std::string& path() const override { return path_; }

  // Most files of a busy prefix carry the time already: a look is cheaper than a change.
  void entered(int result) override {
    if (result < 0) return end(result);
    step(stat_operation(path_, found_), [this](int looked) {
      if (looked < 0) return end(looked);
      if (!S_ISREG(found_.stx_mode)) return finish();
      const std::int64_t renewed = renewed_time(found_, modified_ns_);
      if (renewed == nanoseconds(found_.stx_mtime)) return finish();
      renew(path_, renewed, [this](int set) { end(set); });
    });
  }

  void end(int result) {
    if (!is_gone(-result)) note_touch(result);
    finish();
  }

  std::string path_;
  std::int64_t modified_ns_;
  struct statx found_{};
};

}  // namespace

std::unique_ptr<FileTask> make_remove_task(FileIo& owner, std::string path,
                                           std::function<void(Status)> done) {
  return std::make_unique<RemoveTask>(owner, std::move(path), std::move(done));
}

std::unique_ptr<FileTask> make_touch_task(FileIo& owner, std::string path,
                                          std::int64_t modified_ns) {
  return std::make_unique<TouchTask>(owner, std::move(path), modified_ns);
}

}  // namespace lmkv
