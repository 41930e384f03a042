// The thread that has the kernel make an arena's pages, and map them.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <thread>

#include "arena/arena_file.hpp"
#include "common/doorbell.hpp"

namespace lmkv {

// It runs when nothing else wants the processor, or forward passes would wait for it. So it holds
// no lock, ours or the arena's, which others would then wait for as long as somebody computes: it
// is given one slot at a time, and whoever gave it puts the slot back. All is for that one thread.
class ArenaPages {
 public:
  enum class Order { kGive, kMap };  // ArenaFile's give_pages() and map_pages()

  struct Outcome {
    Order order;
    std::uint32_t slot;
    int failed;  // what the order returned
  };

  // Rings `done` at the end of every order. Throws std::system_error if there is no thread.
  ArenaPages(const ArenaFile& file, Doorbell& done);
  ArenaPages(const ArenaPages&) = delete;
  ArenaPages& operator=(const ArenaPages&) = delete;
  ~ArenaPages();

  // When it is not busy: from here until the outcome is fetched it is.
  void give(std::uint32_t slot) { begin(Order::kGive, slot); }
  void map(std::uint32_t slot) { begin(Order::kMap, slot); }
  [[nodiscard]] bool is_busy() const;
  // Of an order that has ended; once.
  [[nodiscard]] std::optional<Outcome> outcome();
  // Cuts an order short (ECANCELED). Its outcome is there then; no more may be given.
  void stop();

 private:
  enum class State { kIdle, kOrdered, kDone };

  void begin(Order order, std::uint32_t slot);
  void run(const std::stop_token& stop);
  void carry_out(const std::stop_token& stop);

  const ArenaFile& file_;
  Doorbell& done_;
  Outcome work_{};  // the thread's while `state_` is kOrdered
  std::atomic<State> state_{State::kIdle};
  Doorbell wakes_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace lmkv
