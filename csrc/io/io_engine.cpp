#include "io/io_engine.hpp"

#include <algorithm>
#include <stdexcept>

namespace lmkv {
namespace {

// A thread holds one request: enough of them stand in for a ring's depth.
constexpr unsigned kThreadsPerRing = 8;

IoEngineSelection threads_because(unsigned threads, std::string reason) {
  return {make_thread_engine(std::max(1U, threads) * kThreadsPerRing), std::move(reason)};
}

}  // namespace

IoEngineSelection start_io_engine(IoEngineChoice choice, unsigned threads, Caching caching,
                                  Submission submission) {
  if (choice == IoEngineChoice::kThreads) return threads_because(threads, "asked for");
  // A ring's thread would copy all that it finds in the page cache itself (decision 9).
  if (choice == IoEngineChoice::kAuto && caching == Caching::kBuffered) {
    return threads_because(threads,
                           "files go through the page cache here: threads share its copies");
  }
  if (choice == IoEngineChoice::kAuto && submission == Submission::kBlocks) {
    return threads_because(threads,
                           "io_uring would wait for each write in turn on a FUSE filesystem");
  }
  try {
    return {make_uring_engine(std::max(1U, threads)),
            choice == IoEngineChoice::kUring ? "asked for"
                                             : "direct I/O works here, and the kernel allows it"};
  } catch (const std::runtime_error& refused) {
    if (choice == IoEngineChoice::kUring) throw;
    return threads_because(threads, refused.what());
  }
}

}  // namespace lmkv
