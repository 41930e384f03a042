// Lookups over several roots, none of which waits for another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/types.hpp"
#include "store/directory.hpp"
#include "store/lookup_service.hpp"

namespace lmkv {

// A LookupService for each root, with threads of its own: one that hangs has nothing new to say of
// its own chunks, and the others go on. With one root it is that root's. Any thread may call.
class StripedLookup {
 public:
  using Seconds = LookupService::Seconds;

  explicit StripedLookup(const Directory& directory, const LookupOptions& options = {});
  // For tests: `filesystems` of the roots, in the order of `stripes`.
  StripedLookup(Stripes stripes, std::vector<LookupService::Ask> filesystems,
                const LookupOptions& options = {});

  // As those of LookupService.
  [[nodiscard]] std::optional<std::size_t> lookup(std::span<const ChunkKey> keys, Seconds patience);
  [[nodiscard]] std::optional<std::vector<bool>> present(std::span<const ChunkKey> keys,
                                                         Seconds patience);
  void forget();
  [[nodiscard]] std::uint64_t given_up() const;

 private:
  // The keys of one root, and where each is among all.
  struct Share {
    std::vector<ChunkKey> keys;
    std::vector<std::size_t> places;
  };
  [[nodiscard]] std::vector<Share> shares_of(std::span<const ChunkKey> keys) const;
  template <typename Answer, typename F>
  [[nodiscard]] std::vector<Answer> ask_all(Seconds patience, F&& ask);

  const Stripes stripes_;
  std::vector<std::unique_ptr<LookupService>> services_;
};

}  // namespace lmkv
