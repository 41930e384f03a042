// Whether a directory is worth asking.
#pragma once

#include <chrono>
#include <mutex>
#include <string>

namespace lmkv {

// After three failures in a row, or a stall, the directory is out of service for two seconds, and
// then for twice as long after every trial that fails, up to a minute. A trial is whatever is asked
// of it first when the time is over. One success and it is back.
//
// There is one for a directory's loads and one for its stores: a disk that turned read-only still
// serves. Thread-safe.
class RootHealth {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether admits() would say yes, which it then says to one.
  [[nodiscard]] bool may_admit(Clock::time_point now = Clock::now()) const;
  // Whether to go ahead; true once for a trial.
  [[nodiscard]] bool admits(Clock::time_point now = Clock::now());
  // Out, and the time for a trial has come: admits() would let it begin.
  [[nodiscard]] bool is_trial_due(Clock::time_point now = Clock::now()) const;
  void succeeded();
  // `why`: for people.
  void failed(const std::string& why, Clock::time_point now = Clock::now());
  // Nothing has succeeded since `since`, though something was asked: out at once.
  void stalled(Clock::time_point since, const std::string& why,
               Clock::time_point now = Clock::now());

  // Out at once.
  void take_out(const std::string& why);
  // Out for good.
  void retire(const std::string& why);

  [[nodiscard]] bool is_out() const;
  // Of the last failure, while it is out; else "".
  [[nodiscard]] std::string reason() const;

 private:
  void take_out(const std::string& why, Clock::time_point now);  // caller holds mutex_

  mutable std::mutex mutex_;
  int failures_ = 0;  // in a row
  bool out_ = false;
  bool on_trial_ = false;
  bool retired_ = false;
  Clock::time_point last_success_;
  Clock::time_point again_;
  Clock::duration pause_{0};
  std::string reason_;
};

}  // namespace lmkv
