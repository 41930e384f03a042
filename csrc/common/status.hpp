// The core's one error scheme: a failure is a value that has to be looked at.
#pragma once

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace lmkv {

enum class StatusKind {
  kOk,
  kMissing,       // there is no such chunk (any more): a plain miss
  kBadChunk,      // what is there is not the chunk that was asked for
  kIo,            // the tier refused or failed; `error_number` says how, or 0: one file's own
  kUnsettled,     // as kIo, and the buffer may be written to at any time
  kDevice,        // gather or scatter failed
  kTimedOut,      // given up, because it took too long
  kOutOfService,  // not tried, because the tier has failed again and again
  kFull,          // dropped because the directory is at its capacity or the disk at its floor
  kCancelled,     // given up before it was done: closing, or nobody waits for it
};

class [[nodiscard]] Status {
 public:
  static Status ok() { return Status(StatusKind::kOk, 0, {}); }
  static Status missing(std::string_view path) {
    return Status(StatusKind::kMissing, 0, "no such chunk: " + std::string(path));
  }
  // `error_number`: what the kernel said when it read the file, if it was that.
  static Status bad_chunk(std::string_view path, std::string_view what, int error_number = 0) {
    return Status(StatusKind::kBadChunk, error_number,
                  std::string(what) + ": " + std::string(path));
  }
  // `error_number` is a positive errno value.
  static Status io(int error_number, std::string_view operation, std::string_view path) {
    return Status(
        StatusKind::kIo, error_number,
        std::string(operation) + " " + std::string(path) + ": " + std::strerror(error_number));
  }
  // Of a remote engine.
  static Status remote(std::string_view what, std::string_view name) {
    return Status(StatusKind::kIo, EREMOTEIO, std::string(name) + ": " + std::string(what));
  }
  static Status unsettled(std::string_view what, std::string_view name) {
    Status status = remote(what, name);
    status.kind_ = StatusKind::kUnsettled;
    return status;
  }
  // Of one file, in a directory that works: no `error_number` of its own.
  static Status no_permission(int error_number, std::string_view path) {
    Status status = io(error_number, "open", path);
    status.error_number_ = 0;
    return status;
  }
  static Status device(std::string message) {
    return Status(StatusKind::kDevice, 0, std::move(message));
  }
  static Status full() { return Status(StatusKind::kFull, 0, "no space is left for it"); }
  static Status timed_out(std::string message) {
    return Status(StatusKind::kTimedOut, 0, std::move(message));
  }
  static Status out_of_service() {
    return Status(StatusKind::kOutOfService, 0, "the directory is out of service");
  }
  static Status cancelled() { return Status(StatusKind::kCancelled, 0, "cancelled"); }

  [[nodiscard]] bool is_ok() const { return kind_ == StatusKind::kOk; }
  [[nodiscard]] StatusKind kind() const { return kind_; }
  [[nodiscard]] int error_number() const { return error_number_; }
  [[nodiscard]] bool is_full_disk() const {
    return error_number_ == ENOSPC || error_number_ == EDQUOT;
  }
  [[nodiscard]] const std::string& message() const { return message_; }

 private:
  Status(StatusKind kind, int error_number, std::string message)
      : kind_(kind), error_number_(error_number), message_(std::move(message)) {}

  StatusKind kind_;
  int error_number_;
  std::string message_;
};

}  // namespace lmkv
