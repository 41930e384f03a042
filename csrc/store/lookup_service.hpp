// Looks chunks up without making the caller wait for the filesystem.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/types.hpp"
#include "store/directory.hpp"

namespace lmkv {

struct LookupOptions {
  unsigned threads = 4;
  // A chunk that was there is taken for present, without another look, for at most twice this.
  // Eviction spares what was used in the last seconds, and a load that finds nothing is a miss.
  std::chrono::milliseconds believed{5000};
  // A question that the filesystem has not answered by then is given up.
  std::chrono::milliseconds given_up_after{1000};
  // Chunks that are remembered, at most: below 100 bytes each.
  std::size_t remembered = 1 << 17;
};

// What becomes of an absence when it is told: forgotten, or kept until told().
enum class Absence { kForget, kKeep };

// Threads that ask a filesystem, and what they found. Presence is remembered for a while; absence
// only until it was told once, so that a chunk is found as soon as another engine has stored it.
// Any thread may call; no lock is held across a system call.
class LookupService {
 public:
  using Seconds = std::chrono::duration<double>;

  // What may take long: Directory::present. Called from several threads at once.
  using Ask = std::function<std::vector<bool>(std::span<const ChunkKey>, Until)>;

  explicit LookupService(Ask filesystem, const LookupOptions& options = {});
  LookupService(const LookupService&) = delete;
  LookupService& operator=(const LookupService&) = delete;
  // Leaves threads behind that hang in a system call: they end when it returns.
  ~LookupService();

  // As Directory::lookup, but nullopt when that is not known within `patience`: ask again later.
  // A question given up ends the run.
  [[nodiscard]] std::optional<std::size_t> lookup(std::span<const ChunkKey> keys, Seconds patience,
                                                  Absence absence = Absence::kForget);

  // As Directory::present for each of `keys`, with the same patience. Given up is absent.
  [[nodiscard]] std::optional<std::vector<bool>> present(std::span<const ChunkKey> keys,
                                                         Seconds patience,
                                                         Absence absence = Absence::kForget);

  // These answers were used: of those that were kept, absences are forgotten.
  void told(std::span<const ChunkKey> keys);

  // Drops all that is known: what was seen before is not believed any more.
  void forget();

  // How many times a question was given up.
  [[nodiscard]] std::uint64_t given_up() const;

 private:
  class Worker;
  // Shared with the threads, which may outlive us.
  std::shared_ptr<Worker> worker_;
};

}  // namespace lmkv
