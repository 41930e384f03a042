#include "engine/jobs.hpp"

#include <algorithm>
#include <utility>

namespace lmkv {
namespace {

constexpr std::chrono::hours kLongestWait{24};

}  // namespace

JobId JobBoard::begin() {
  const std::lock_guard lock(mutex_);
  ++in_flight_;
  return JobId{next_++};
}

void JobBoard::complete(Completion completion) {
  const std::lock_guard lock(mutex_);
  completions_.push_back(std::move(completion));
}

void JobBoard::end(Completion completion) {
  const std::lock_guard lock(mutex_);
  completions_.push_back(std::move(completion));
  if (--in_flight_ == 0) idle_.notify_all();
}

void JobBoard::begin_quietly() {
  const std::lock_guard lock(mutex_);
  ++in_flight_;
}

void JobBoard::end_quietly() {
  const std::lock_guard lock(mutex_);
  if (--in_flight_ == 0) idle_.notify_all();
}

std::vector<Completion> JobBoard::poll() {
  const std::lock_guard lock(mutex_);
  return std::exchange(completions_, {});
}

std::size_t JobBoard::in_flight() const {
  const std::lock_guard lock(mutex_);
  return in_flight_;
}

bool JobBoard::wait_idle(std::chrono::duration<double> timeout) {
  const std::chrono::duration<double> longest = kLongestWait;  // infinity overflows the clock
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::min(timeout, longest), [this] { return in_flight_ == 0; });
}

}  // namespace lmkv
