#include "store/stripes.hpp"

#include <xxhash.h>

namespace lmkv {

Stripes::Stripes(const std::vector<std::string>& roots) {
  seeds_.reserve(roots.size());
  for (const std::string& root : roots) seeds_.push_back(XXH3_64bits(root.data(), root.size()));
}

std::size_t Stripes::of(const ChunkKey& key) const {
  if (seeds_.size() == 1) return 0;
  std::size_t heaviest = 0;
  std::uint64_t most = 0;
  for (std::size_t i = 0; i < seeds_.size(); ++i) {
    const std::uint64_t weight =
        XXH3_64bits_withSeed(key.bytes.data(), key.bytes.size(), seeds_[i]);
    if (i == 0 || weight > most) {
      heaviest = i;
      most = weight;
    }
  }
  return heaviest;
}

}  // namespace lmkv
