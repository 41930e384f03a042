#include "engine/bench_engine.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "common/access.hpp"
#include "device/host_stream.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);
constexpr std::chrono::seconds kLongestScan{10};

// Callbacks, and so the checksums of stores, run on a thread of its own, as those of a real one.
class NoCopyDevice final : public Device {
 public:
  explicit NoCopyDevice(std::size_t block_bytes)
      : block_bytes_(block_bytes), random_(static_cast<std::uint64_t>(::getpid())) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    random_.discard(1);
    random_.seed(random_() ^ static_cast<std::uint64_t>(now.count()));
  }

  void start() override { thread_ = std::make_unique<HostStream>(); }
  void stop() override { thread_.reset(); }
  [[nodiscard]] std::shared_ptr<const Fence> fence(std::uintptr_t) override { return nullptr; }

  void submit(Transfer transfer) override {
    thread_->enqueue([this, transfer = std::move(transfer)] {
      if (transfer.direction == Direction::kGather) {
        const std::int64_t before = thread_cpu_ns();
        change(transfer);
        own_cpu_ns_.fetch_add(thread_cpu_ns() - before, std::memory_order_relaxed);
      }
      transfer.done(Status::ok());
    });
  }

  [[nodiscard]] std::string pin(std::byte* begin, std::size_t bytes) override {
    for (std::size_t at = 0; at + kWord <= bytes; at += kWord) {
      const std::uint64_t word = random_();
      std::memcpy(begin + at, &word, kWord);
    }
    return {};
  }
  void unpin(std::byte*) override {}
  [[nodiscard]] std::string failure() const override { return {}; }
  [[nodiscard]] std::map<std::string, std::string> info() const override {
    return {{"device", "none"},
            {"bench_cpu_microseconds", std::to_string(own_cpu_ns_.load() / 1000)}};
  }

 private:
  // One word of every page: a page that any two files share would be a copy.
  void change(const Transfer& transfer) {
    const std::uint64_t salt = random_();
    const std::size_t bytes = transfer.blocks.size() * block_bytes_;
    for (std::size_t at = 0; at + kWord <= bytes; at += kPageBytes) {
      std::uint64_t word = 0;
      std::memcpy(&word, transfer.host + at, kWord);
      word ^= salt + at;
      std::memcpy(transfer.host + at, &word, kWord);
    }
  }

  static std::int64_t thread_cpu_ns() {
    timespec used{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return used.tv_sec * 1'000'000'000LL + used.tv_nsec;
  }

  const std::size_t block_bytes_;
  std::atomic<std::int64_t> own_cpu_ns_{0};  // of making the bytes new: no engine's work
  std::mt19937_64 random_;                   // pin(), then the thread's
  std::unique_ptr<HostStream> thread_;
};

EngineParts parts_with(const EngineOptions& options, std::shared_ptr<Faults> faults) {
  EngineParts parts = make_parts(options);
  if (!faults) return parts;
  for (RootParts& root : parts.roots) {
    if (root.error.empty()) root.io_engine = make_fault_engine(std::move(root.io_engine), faults);
  }
  return parts;
}

// As in a tree that is in use: a fresh one would have one made for nearly every file.
void make_all_directories(const EngineOptions& options) {
  constexpr unsigned kDirectories = 1 << 12;  // the first three digits of a key
  for (unsigned i = 0; i < kDirectories * options.roots.size(); ++i) {
    const ChunkPaths paths(options.roots[i / kDirectories], options.namespace_digest, options.rank);
    ChunkKey key;
    key.bytes[0] = static_cast<std::uint8_t>(i % kDirectories >> 4);
    key.bytes[1] = static_cast<std::uint8_t>((i & 15) << 4);
    // What it cannot make, the store that needs it will report.
    make_directories(paths, key, options.access);
  }
}

}  // namespace

std::unique_ptr<Engine> make_faulty_engine(const EngineOptions& options,
                                           std::shared_ptr<Faults> faults) {
  return std::make_unique<Engine>(options, parts_with(options, std::move(faults)));
}

std::unique_ptr<Engine> make_bench_engine(const EngineOptions& options,
                                          std::shared_ptr<Faults> faults) {
  EngineParts parts = parts_with(options, std::move(faults));
  make_all_directories(options);
  parts.device = std::make_unique<NoCopyDevice>(SegmentTable(options.segments).block_bytes());
  auto engine = std::make_unique<Engine>(options, std::move(parts));
  // Housekeeping's first look at the tree belongs to the start, not to what is measured.
  const auto deadline = std::chrono::steady_clock::now() + kLongestScan;
  while (engine->stats()["housekeeping_passes"] == 0 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return engine;
}

}  // namespace lmkv
