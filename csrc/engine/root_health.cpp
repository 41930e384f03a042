#include "engine/root_health.hpp"

#include <algorithm>

namespace lmkv {
namespace {

constexpr int kFailuresInARow = 3;
constexpr std::chrono::seconds kShortestPause{2};
constexpr std::chrono::seconds kLongestPause{60};

}  // namespace

bool RootHealth::admits(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (!out_) return true;
  if (retired_ || now < again_) return false;
  again_ = now + pause_;  // one trial at a time; what never comes back is followed by another
  on_trial_ = true;
  return true;
}

bool RootHealth::may_admit(Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  return !out_ || (!retired_ && now >= again_);
}

bool RootHealth::is_trial_due(Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  return out_ && !retired_ && now >= again_;
}

void RootHealth::succeeded() {
  const std::lock_guard lock(mutex_);
  if (retired_) return;
  failures_ = 0;
  out_ = false;
  on_trial_ = false;
  pause_ = Clock::duration{0};
  last_success_ = Clock::now();
}

void RootHealth::failed(const std::string& why, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (++failures_ >= kFailuresInARow || out_) take_out(why, now);
}

void RootHealth::stalled(Clock::time_point since, const std::string& why, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (last_success_ < since) take_out(why, now);
}

void RootHealth::take_out(const std::string& why, Clock::time_point now) {
  if (retired_) return;
  reason_ = why;
  // What was asked before it was taken out fails late: the next trial is not put off for that.
  if (out_ && !on_trial_) return;
  on_trial_ = false;
  pause_ = std::clamp<Clock::duration>(2 * pause_, kShortestPause, kLongestPause);
  again_ = now + pause_;
  out_ = true;
}

void RootHealth::take_out(const std::string& why) {
  const std::lock_guard lock(mutex_);
  take_out(why, Clock::now());
}

void RootHealth::retire(const std::string& why) {
  const std::lock_guard lock(mutex_);
  out_ = true;
  retired_ = true;
  reason_ = why;
}

bool RootHealth::is_out() const {
  const std::lock_guard lock(mutex_);
  return out_;
}

std::string RootHealth::reason() const {
  const std::lock_guard lock(mutex_);
  return out_ ? reason_ : std::string();
}

}  // namespace lmkv
