#include "engine/page_supply.hpp"

#include <sys/mman.h>

#include <algorithm>

#include "common/background_thread.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; glibc 2.35
#endif

namespace lmkv {
namespace {

// In one call, for whose time the process can map nothing: a huge page.
constexpr std::size_t kPiece = 2 << 20;

}  // namespace

PageSupply::PageSupply(std::byte* begin, std::size_t bytes)
    : begin_(begin), bytes_(bytes), thread_([this] { run(); }) {}

PageSupply::~PageSupply() {
  ends_.store(true, std::memory_order_relaxed);
  changed_.ring();
  thread_.join();
}

void PageSupply::reach(std::size_t end) {
  end = std::min(end, bytes_);
  std::size_t before = wanted_.load(std::memory_order_relaxed);
  while (before < end && !wanted_.compare_exchange_weak(before, end, std::memory_order_relaxed)) {
  }
  if (before < end) changed_.ring();
}

void PageSupply::run() {
  become_background_thread("lmkv-pages");
  // Or the forward pass behind a load shares its processors with it: 65 ms to the first token
  // became 90 to 250 where the host has to find memory for the guest.
  run_only_when_idle();
  std::size_t done = 0;
  while (done < bytes_) {
    if (ends_.load(std::memory_order_relaxed)) return;
    const std::size_t wanted = wanted_.load(std::memory_order_relaxed);
    if (wanted == done) {
      changed_.wait();
      continue;
    }
    const std::size_t piece = std::min(kPiece, wanted - done);
    // There is no such call, or no memory: then pages come when they are touched.
    if (::madvise(begin_ + done, piece, MADV_POPULATE_WRITE) != 0) return;
    done += piece;
  }
}

}  // namespace lmkv
