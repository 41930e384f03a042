#include "device/host_copy.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace lmkv {
namespace {

struct Run {
  std::byte* to;
  const std::byte* from;
  std::size_t bytes;
};

#ifdef __SSE2__

constexpr std::size_t kStep = 256;  // prefetched and copied at a time
constexpr std::size_t kPrefetchAhead = 4096;
constexpr std::size_t kVector = sizeof(__m128i);

// Copies past the caches, which the model's own data are better off with and which would read the
// target's lines before they are overwritten, and asks for the source well ahead: across pages,
// where the hardware's prefetcher stops, and on into `next`, the run that is copied after this one.
// To the second-level cache: the first has too few fills in flight. Measured with 16 KiB runs in
// random order: 1.0 of one large memcpy, where memcpy by the run reaches 0.75.
void copy_run(const Run& run, const std::byte* next) {
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(run.to) % kVector;
  const std::size_t head = misaligned == 0 ? 0 : kVector - misaligned;
  if (run.bytes < head + kStep) {
    std::memcpy(run.to, run.from, run.bytes);
    return;
  }
  std::memcpy(run.to, run.from, head);
  std::size_t at = head;
  for (; at + kStep <= run.bytes; at += kStep) {
    const std::size_t ahead = at + kPrefetchAhead;
    const auto prefetch = reinterpret_cast<std::uintptr_t>(
        ahead < run.bytes ? run.from + ahead : next + (ahead - run.bytes) % kPrefetchAhead);
    for (std::size_t line = 0; line < kStep; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(prefetch + line), _MM_HINT_T1);
    }
    for (std::size_t i = at; i < at + kStep; i += kVector) {
      const __m128i vector = _mm_loadu_si128(reinterpret_cast<const __m128i*>(run.from + i));
      _mm_stream_si128(reinterpret_cast<__m128i*>(run.to + i), vector);
    }
  }
  std::memcpy(run.to + at, run.from + at, run.bytes - at);
}

// Streaming stores are ordered with others by this alone.
void finish_copying() { _mm_sfence(); }

#else

void copy_run(const Run& run, const std::byte*) { std::memcpy(run.to, run.from, run.bytes); }
void finish_copying() {}

#endif

}  // namespace

void copy_blocks_on_host(const Transfer& transfer, const SegmentTable& table) {
  const std::span<const Segment> segments = table.segments();
  std::byte* host = transfer.host;
  const auto run_at = [&](std::size_t block, std::size_t index) -> Run {
    const Segment& segment = segments[index];
    const std::size_t offset =
        static_cast<std::size_t>(transfer.blocks[block]) * segment.block_stride;
    auto* const paged = reinterpret_cast<std::byte*>(segment.base + offset);
    if (transfer.direction == Direction::kGather) return {host, paged, segment.bytes};
    return {paged, host, segment.bytes};
  };
  for (std::size_t block = 0; block < transfer.blocks.size(); ++block) {
    for (std::size_t index = 0; index < segments.size(); ++index) {
      const Run run = run_at(block, index);
      host += run.bytes;
      // The run after this one; behind the last, itself, which does no harm.
      Run next = run;
      if (index + 1 < segments.size()) {
        next = run_at(block, index + 1);
      } else if (block + 1 < transfer.blocks.size()) {
        next = run_at(block + 1, 0);
      }
      copy_run(run, next.from);
    }
  }
  finish_copying();
}

}  // namespace lmkv
