// One file's state machine. Private to direct_file.cpp and the tasks.
//
// A task runs one operation after another ("steps"), or its pieces all at once; nothing of it runs
// twice at a time, whatever the number of I/O threads, so its members need no lock but those that
// finishing pieces share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/clocks.hpp"
#include "common/posix.hpp"
#include "common/unique_fd.hpp"
#include "io/direct_file.hpp"

namespace lmkv {

class FileTask : public OperationHandler {
 public:
  enum class Lane { kRead, kWrite, kRemove, kTouch };

  FileTask(FileIo& owner, Lane lane, std::size_t bytes, std::uint64_t group = 0)
      : owner_(owner), lane_(lane), bytes_(bytes), group_(group) {}
  virtual ~FileTask() = default;
  FileTask(const FileTask&) = delete;
  FileTask& operator=(const FileTask&) = delete;

  void start();
  virtual void report() = 0;  // to the requester, once, when the last operation is done
  virtual void cancel() = 0;  // instead of start() and report()
  // Ends in retire(), once its depth is given back and the files that got it have been started.
  virtual void conclude() { retire(); }

  [[nodiscard]] Lane lane() const { return lane_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] std::uint64_t group() const { return group_; }

 protected:
  using Continuation = std::function<void(int result)>;

  // Where the task's files are; and its first step, when that was entered, or could not be.
  [[nodiscard]] virtual const std::string& path() const = 0;
  virtual void entered(int result) = 0;

  // Opens `directory`, which is the root or below it; no link below the root is followed. Steps
  // resolve paths of this directory from it from now on, whatever comes into its place.
  void enter(std::string directory, Continuation next);
  [[nodiscard]] const std::string& root() const { return owner_.options_.root; }

  // One operation; `next` gets its result. EINTR and EAGAIN are retried underneath, but for a
  // close.
  void step(Operation operation, Continuation next);

  // What pieces end with: 0, an errno, or kEndOfFile.
  static constexpr int kEndOfFile = -1;
  // Reads or writes `bytes()` bytes of `buffer` in requests that are all in flight together, but
  // for writes to the page cache.
  void transfer(OperationKind kind, int descriptor, std::byte* buffer, Caching caching,
                std::function<void(int outcome)> next);

  // The last thing that a task does: it may be gone when this returns.
  void finish() { owner_.finish(this); }
  void retire() { owner_.retire(this); }  // of conclude()
  void refuse_direct() { owner_.refuse_direct(); }
  void note_touch(int result) { owner_.note_touch(result); }
  // Sets a file's modification time, or the present one where only its owner may set another.
  void renew(const std::string& path, std::int64_t modified_ns, Continuation next);
  [[nodiscard]] Caching caching() const { return owner_.caching(); }
  [[nodiscard]] Publish publish() const { return owner_.options_.publish; }
  [[nodiscard]] Access access() const { return owner_.options_.access; }
  [[nodiscard]] const MountPlace& place() const { return owner_.options_.place; }
  // What a file gets that has `found` and is used at `wanted`; `found` if it need not be changed.
  [[nodiscard]] std::int64_t renewed_time(const struct statx& found, std::int64_t wanted) const;

 private:
  void on_complete(Operation& operation, int result) final;
  void on_piece(Operation& piece, int result);
  bool retry(Operation& operation, int result);
  [[nodiscard]] std::size_t length_of(const Operation& piece) const;  // as it was asked for first

  FileIo& owner_;
  const Lane lane_;
  const std::size_t bytes_;
  const std::uint64_t group_;

  std::string directory_;  // that was entered, with a slash behind it
  UniqueFd opened_directory_;

  Operation step_;
  OperationKind step_kind_{};  // while step_ pauses before a retry, as pieces_kind_
  Continuation next_;

  std::vector<Operation> pieces_;
  OperationKind pieces_kind_{};
  bool one_by_one_ = false;  // each piece submits the next
  std::size_t granule_ = 1;  // a continued request starts at a multiple of this
  std::function<void(int)> pieces_done_;
  std::atomic<std::size_t> pieces_left_{0};
  std::atomic<int> pieces_outcome_{0};

  friend class FileIo;
  std::size_t given_back_ = 0;  // of bytes(), to the lane's depth; guarded by FileIo's mutex
};

std::unique_ptr<FileTask> make_read_task(FileIo& owner, FileRead request);
std::unique_ptr<FileTask> make_write_task(FileIo& owner, FileWrite request);
std::unique_ptr<FileTask> make_remove_task(FileIo& owner, std::string path,
                                           std::function<void(Status)> done);
std::unique_ptr<FileTask> make_touch_task(FileIo& owner, std::string path,
                                          std::int64_t modified_ns);

}  // namespace lmkv
