#include "store/striped_lookup.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

namespace lmkv {
namespace {

using Clock = std::chrono::steady_clock;

std::vector<LookupService::Ask> asks_of(const Directory& directory) {
  // Keys of one root each time, so that only that root is touched.
  return std::vector<LookupService::Ask>(directory.stripes().count(),
                                         [directory](std::span<const ChunkKey> keys, Until until) {
                                           return directory.present(keys, until);
                                         });
}

// What is left of a patience that all roots share.
class SharedPatience {
 public:
  explicit SharedPatience(LookupService::Seconds patience)
      : patience_(patience), begun_(Clock::now()) {}
  [[nodiscard]] LookupService::Seconds left() const {
    const LookupService::Seconds left = patience_ - (Clock::now() - begun_);
    return std::max(LookupService::Seconds(0), left);
  }

 private:
  LookupService::Seconds patience_;
  Clock::time_point begun_;
};

}  // namespace

StripedLookup::StripedLookup(const Directory& directory, const LookupOptions& options)
    : StripedLookup(directory.stripes(), asks_of(directory), options) {}

StripedLookup::StripedLookup(Stripes stripes, std::vector<LookupService::Ask> filesystems,
                             const LookupOptions& options)
    : stripes_(std::move(stripes)) {
  for (LookupService::Ask& ask : filesystems) {
    services_.push_back(std::make_unique<LookupService>(std::move(ask), options));
  }
}

std::vector<StripedLookup::Share> StripedLookup::shares_of(std::span<const ChunkKey> keys) const {
  std::vector<Share> shares(services_.size());
  for (std::size_t place = 0; place < keys.size(); ++place) {
    Share& share = shares[stripes_.of(keys[place])];
    share.keys.push_back(keys[place]);
    share.places.push_back(place);
  }
  return shares;
}

// What `ask` answers for each root, asking all of them before it waits for one; nothing while one
// has no answer.
template <typename Answer, typename F>
std::vector<Answer> StripedLookup::ask_all(Seconds patience, F&& ask) {
  const SharedPatience shared(patience);
  std::vector<std::optional<Answer>> found(services_.size());
  for (std::size_t i = 0; i < services_.size(); ++i) found[i] = ask(i, Seconds(0));
  std::vector<Answer> answers;
  for (std::size_t i = 0; i < services_.size(); ++i) {
    if (!found[i]) found[i] = ask(i, shared.left());
    if (found[i]) answers.push_back(std::move(*found[i]));
  }
  if (answers.size() < services_.size()) answers.clear();
  return answers;
}

std::optional<std::size_t> StripedLookup::lookup(std::span<const ChunkKey> keys, Seconds patience) {
  if (services_.size() == 1) return services_.front()->lookup(keys, patience);
  const std::vector<Share> shares = shares_of(keys);
  const auto runs = ask_all<std::size_t>(patience, [&](std::size_t i, Seconds left) {
    return services_[i]->lookup(shares[i].keys, left, Absence::kKeep);
  });
  if (runs.empty()) return std::nullopt;
  std::size_t run = keys.size();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (runs[i] == shares[i].keys.size()) continue;
    run = std::min(run, shares[i].places[runs[i]]);
    services_[i]->told(std::span(shares[i].keys).subspan(runs[i], 1));
  }
  return run;
}

std::optional<std::vector<bool>> StripedLookup::present(std::span<const ChunkKey> keys,
                                                        Seconds patience) {
  if (services_.size() == 1) return services_.front()->present(keys, patience);
  const std::vector<Share> shares = shares_of(keys);
  const auto answers = ask_all<std::vector<bool>>(patience, [&](std::size_t i, Seconds left) {
    return services_[i]->present(shares[i].keys, left, Absence::kKeep);
  });
  if (answers.empty()) return std::nullopt;
  std::vector<bool> there(keys.size());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    for (std::size_t k = 0; k < shares[i].keys.size(); ++k) {
      there[shares[i].places[k]] = answers[i][k];
    }
    services_[i]->told(shares[i].keys);
  }
  return there;
}

void StripedLookup::forget() {
  for (const std::unique_ptr<LookupService>& service : services_) service->forget();
}

std::uint64_t StripedLookup::given_up() const {
  std::uint64_t all = 0;
  for (const std::unique_ptr<LookupService>& service : services_) all += service->given_up();
  return all;
}

}  // namespace lmkv
