// Which of several roots a chunk belongs to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/types.hpp"

namespace lmkv {

// Rendezvous hashing (Thaler and Ravishankar, 1998): every root is weighed by a hash of its path
// and the key, and the heaviest has the chunk. So chunks spread evenly, the order of the roots does
// not matter, and one that is added or removed moves only its own share.
class Stripes {
 public:
  explicit Stripes(const std::vector<std::string>& roots);

  [[nodiscard]] std::size_t count() const { return seeds_.size(); }
  // Index of the root. Any thread.
  [[nodiscard]] std::size_t of(const ChunkKey& key) const;

 private:
  std::vector<std::uint64_t> seeds_;
};

}  // namespace lmkv
