#include "engine/bench_engine.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>

#include "device/host_stream.hpp"

namespace lmkv {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);

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
      if (transfer.direction == Direction::kGather) change(transfer);
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
    return {{"device", "none"}};
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

  const std::size_t block_bytes_;
  std::mt19937_64 random_;  // pin(), then the thread's
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

}  // namespace

std::unique_ptr<Engine> make_faulty_engine(const EngineOptions& options,
                                           std::shared_ptr<Faults> faults) {
  return std::make_unique<Engine>(options, parts_with(options, std::move(faults)));
}

std::unique_ptr<Engine> make_bench_engine(const EngineOptions& options,
                                          std::shared_ptr<Faults> faults) {
  EngineParts parts = parts_with(options, std::move(faults));
  parts.device = std::make_unique<NoCopyDevice>(SegmentTable(options.segments).block_bytes());
  return std::make_unique<Engine>(options, std::move(parts));
}

}  // namespace lmkv
