#include "arena/arena_pages.hpp"

#include "common/background_thread.hpp"

namespace lmkv {

ArenaPages::ArenaPages(const ArenaFile& file, Doorbell& done)
    : file_(file), done_(done), thread_([this](const std::stop_token& stop) { run(stop); }) {}

ArenaPages::~ArenaPages() { stop(); }

void ArenaPages::stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  wakes_.ring();
  thread_.join();
}

void ArenaPages::begin(Order order, std::uint32_t slot) {
  work_ = {order, slot, 0};
  state_.store(State::kOrdered, std::memory_order_release);
  wakes_.ring();
}

bool ArenaPages::is_busy() const { return state_.load(std::memory_order_relaxed) != State::kIdle; }

std::optional<ArenaPages::Outcome> ArenaPages::outcome() {
  if (state_.load(std::memory_order_acquire) != State::kDone) return std::nullopt;
  state_.store(State::kIdle, std::memory_order_relaxed);
  return work_;
}

void ArenaPages::run(const std::stop_token& stop) {
  become_background_thread("lmkv-pages");
  run_only_when_idle();
  for (;;) {
    wakes_.wait();
    carry_out(stop);
    if (stop.stop_requested()) return;
  }
}

void ArenaPages::carry_out(const std::stop_token& stop) {
  if (state_.load(std::memory_order_acquire) != State::kOrdered) return;
  work_.failed = work_.order == Order::kGive ? file_.give_pages(work_.slot, stop)
                                             : file_.map_pages(work_.slot, stop);
  state_.store(State::kDone, std::memory_order_release);
  done_.ring();
}

}  // namespace lmkv
