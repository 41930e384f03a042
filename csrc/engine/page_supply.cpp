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
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void PageSupply::reach(std::size_t end) {
  {
    const std::lock_guard lock(mutex_);
    if (end <= wanted_) return;
    wanted_ = std::min(end, bytes_);
  }
  changed_.notify_one();
}

void PageSupply::run() {
  become_background_thread("lmkv-pages");
  // Or the forward pass behind a load shares its processors with it: 65 ms to the first token
  // became 90 to 250 where the host has to find memory for the guest.
  run_only_when_idle();
  std::size_t done = 0;
  std::unique_lock lock(mutex_);
  while (done < bytes_) {
    changed_.wait(lock, [&] { return ends_ || wanted_ > done; });
    if (ends_) return;
    const std::size_t piece = std::min(kPiece, wanted_ - done);
    lock.unlock();
    // There is no such call, or no memory: then pages come when they are touched.
    if (::madvise(begin_ + done, piece, MADV_POPULATE_WRITE) != 0) return;
    done += piece;
    lock.lock();
  }
}

}  // namespace lmkv
