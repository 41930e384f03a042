#include "store/eviction_policy.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "store/use_stamp.hpp"

namespace lmkv {
namespace {

class LeastRecentlyUsed final : public EvictionPolicy {
 public:
  void begin_scan(std::int64_t now_ns) override { now_ns_ = now_ns; }
  [[nodiscard]] double worth(const RankName&, const ChunkKey&, const FileFacts& facts) override {
    // Relative to now, so that a double holds it to far less than kUsePerToken.
    return static_cast<double>(facts.modified_ns - now_ns_);
  }

 private:
  std::int64_t now_ns_ = 0;
};

// ---- By reuse

// Ages since the last use: bins that grow by half an octave, from one tick to weeks.
constexpr std::size_t kBins = 40;
constexpr double kFirstBin = std::chrono::duration<double>(kUseTick).count();

std::size_t bin_of(double seconds) {
  if (seconds <= kFirstBin) return 0;
  return std::min(static_cast<std::size_t>(2 * std::log2(seconds / kFirstBin)), kBins - 1);
}

double bin_begin(std::size_t bin) {
  return bin == 0 ? 0 : kFirstBin * std::exp2(static_cast<double>(bin) / 2);
}

constexpr std::size_t kUseKinds = 5;
constexpr std::size_t kDepthKinds = 2;
constexpr std::size_t kKinds = kUseKinds * kDepthKinds;

std::size_t kind_of(unsigned uses, bool deep) {
  constexpr std::array<unsigned, kUseKinds> kFrom{0, 1, 2, 4, 10};
  const auto above = std::upper_bound(kFrom.begin(), kFrom.end(), uses);
  return static_cast<std::size_t>(above - kFrom.begin() - 1) * kDepthKinds + (deep ? 1 : 0);
}

using Counts = std::array<std::array<double, kBins>, kKinds>;

// Before anything is known: so many uses in every bin, at a rate of kPriorRate for each age that
// passes. A rate that falls with age makes the least recently used the least worth.
constexpr double kPriorUses = 15;
constexpr double kPriorRate = 0.25;
// What was counted is halved when it comes to this: what was learnt long ago fades.
constexpr double kMostCounted = 20'000;

// index[kind][bin] from `used`, gaps between a use and the next, and `unused`, ages of chunks that
// were not used again so far.
Counts gittins(const Counts& used, const Counts& unused) {
  Counts index{};
  for (std::size_t kind = 0; kind < kKinds; ++kind) {
    std::array<double, kBins> uses{};
    std::array<double, kBins> seconds{};  // that chunks of the kind were kept at that age
    double alive = 0;                     // at the end of the bin
    for (std::size_t bin = kBins; bin-- > 0;) {
      const double ended = used[kind][bin] + unused[kind][bin];
      const double width = bin_begin(bin + 1) - bin_begin(bin);
      const double middle = (bin_begin(bin + 1) + bin_begin(bin)) / 2;
      uses[bin] = used[kind][bin] + kPriorUses;
      seconds[bin] = (alive + ended / 2) * width + kPriorUses * middle / kPriorRate;
      alive += ended;
    }
    for (std::size_t bin = 0; bin < kBins; ++bin) {
      double sum_of_uses = 0;
      double sum_of_seconds = 0;
      for (std::size_t horizon = bin; horizon < kBins; ++horizon) {
        sum_of_uses += uses[horizon];
        sum_of_seconds += seconds[horizon];
        index[kind][bin] = std::max(index[kind][bin], sum_of_uses / sum_of_seconds);
      }
    }
  }
  return index;
}

// A prefix's head is used no less, and no longer ago, than what is behind it: it is worth no less.
void keep_heads_before_tails(Counts& index) {
  for (auto& of_kind : index) {
    for (std::size_t bin = kBins - 1; bin-- > 0;) {
      of_kind[bin] = std::max(of_kind[bin], of_kind[bin + 1]);
    }
  }
  for (std::size_t kind = 0; kind < kKinds; kind += kDepthKinds) {
    for (std::size_t bin = 0; bin < kBins; ++bin) {
      double& shallow = index[kind][bin];
      double& deep = index[kind + 1][bin];
      if (kind > 0) deep = std::max(deep, index[kind + 1 - kDepthKinds][bin]);
      if (kind > 0) shallow = std::max(shallow, index[kind - kDepthKinds][bin]);
      shallow = std::max(shallow, deep);
    }
  }
}

class Reuse final : public EvictionPolicy {
 public:
  explicit Reuse(const ReuseOptions& options) : options_(options) {}

  void begin_scan(std::int64_t now_ns) override {
    now_ns_ = now_ns;
    ++scan_;
    if (!depths_.empty()) {
      const auto middle = depths_.begin() + static_cast<std::ptrdiff_t>(depths_.size() / 2);
      std::nth_element(depths_.begin(), middle, depths_.end());
      median_depth_ = *middle;
      depths_.clear();
    }
    thin_out();
    fade();
    learn();
    files_ = 0;
  }

  [[nodiscard]] double worth(const RankName& rank, const ChunkKey& key,
                             const FileFacts& facts) override {
    const Use use = use_of(facts.modified_ns);
    const bool deep = use.token_begin > median_depth_;
    ++files_;
    if (depths_.size() < kMostDepths) depths_.push_back(use.token_begin);
    unsigned uses = use.again;
    const std::uint64_t name = name_of(rank, key);
    if (is_remembered(name)) uses = note(name, use.again, use.last_ns, deep);
    return index_[kind_of(uses, deep)][bin_of(age_of(use.last_ns))];
  }

  void evicted(const RankName& rank, const ChunkKey& key) override {
    const auto found = past_.find(name_of(rank, key));
    if (found != past_.end()) found->second.evicted = true;
  }

 private:
  static constexpr std::size_t kMostDepths = 4096;  // of a scan: names are hashes, so any will do
  static constexpr std::size_t kFewest = 1 << 13;   // remembered, however few files there are

  // What is remembered of a chunk, there or not.
  struct Past {
    std::int64_t used_ns = 0;
    std::uint32_t scan = 0;    // in which it was seen last
    std::uint8_t kind = 0;     // it was, then
    std::uint8_t again = 0;    // as its file said
    std::uint8_t uses = 0;     // those included that its earlier files had
    std::uint8_t brought = 0;  // of these, from before its file was made
    bool evicted = false;
  };

  static std::uint64_t name_of(const RankName& rank, const ChunkKey& key) {
    std::uint64_t name = 0;
    std::uint64_t space = 0;
    // Not the first bytes: these are the directory's.
    std::memcpy(&name, key.bytes.data() + 8, sizeof name);
    std::memcpy(&space, rank.namespace16.data(), sizeof space);
    return name ^ ((space + rank.rank) * 0x9E3779B97F4A7C15ULL);
  }

  [[nodiscard]] bool is_remembered(std::uint64_t name) const { return (name & mask_) == 0; }

  [[nodiscard]] double age_of(std::int64_t used_ns) const {
    return std::max(0.0, static_cast<double>(now_ns_ - used_ns) / 1e9);
  }

  // Returns how often it was used.
  unsigned note(std::uint64_t name, unsigned again, std::int64_t used_ns, bool deep) {
    const auto [place, is_new] = past_.try_emplace(name);
    Past& past = place->second;
    if (!is_new && used_ns > past.used_ns) {
      used_[past.kind][bin_of(static_cast<double>(used_ns - past.used_ns) / 1e9)] += 1;
      ++counted_;
    }
    if (!is_new && (past.evicted || again < past.again)) {  // its file is another one
      past.brought = static_cast<std::uint8_t>(std::min(past.uses + 1U, kMostUses));
    }
    const unsigned uses = std::min(past.brought + again, kMostUses);
    past.used_ns = used_ns;
    past.scan = scan_;
    past.kind = static_cast<std::uint8_t>(kind_of(uses, deep));
    past.again = static_cast<std::uint8_t>(again);
    past.uses = static_cast<std::uint8_t>(uses);
    past.evicted = false;
    return uses;
  }

  // Keeps no more than is allowed, or of use: five times what is there. Those go that the last scan
  // did not see, the longest unused first; and where files alone are too many, all but a part of
  // the names.
  void thin_out() {
    while (files_ / (mask_ + 1) > options_.remembered / 5) {
      mask_ = 2 * mask_ + 1;
      std::erase_if(past_, [this](const auto& entry) { return !is_remembered(entry.first); });
    }
    const std::size_t most = std::clamp<std::size_t>(
        5 * files_ / (mask_ + 1), std::min(kFewest, options_.remembered), options_.remembered);
    if (past_.size() <= most) return;
    std::vector<std::pair<std::int64_t, std::uint64_t>> gone;
    for (const auto& [name, past] : past_) {
      if (past.scan + 1 < scan_) gone.emplace_back(past.used_ns, name);
    }
    const std::size_t count = std::min(gone.size(), past_.size() - most + most / 8);
    const auto end = gone.begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(gone.begin(), end, gone.end());
    for (auto each = gone.begin(); each != end; ++each) {
      const auto found = past_.find(each->second);
      unused_[found->second.kind][bin_of(age_of(found->second.used_ns))] += 1;
      past_.erase(found);
    }
  }

  void fade() {
    if (counted_ < kMostCounted) return;
    for (Counts* counts : {&used_, &unused_}) {
      for (auto& of_kind : *counts) {
        for (double& count : of_kind) count /= 2;
      }
    }
    counted_ /= 2;
  }

  void learn() {
    Counts unused = unused_;
    for (const auto& [name, past] : past_) unused[past.kind][bin_of(age_of(past.used_ns))] += 1;
    index_ = gittins(used_, unused);
    keep_heads_before_tails(index_);
  }

  const ReuseOptions options_;
  std::int64_t now_ns_ = 0;
  std::uint32_t scan_ = 0;
  std::size_t files_ = 0;   // in this scan
  std::uint64_t mask_ = 0;  // names with any of these bits are not remembered
  std::vector<std::uint64_t> depths_;
  std::uint64_t median_depth_ = 0;
  std::unordered_map<std::uint64_t, Past> past_;
  Counts used_{};    // gaps between a use and the next
  Counts unused_{};  // ages at which chunks were forgotten
  double counted_ = 0;
  Counts index_{};
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_eviction_policy(EvictionOrder order) {
  return order == EvictionOrder::kReuse ? make_reuse_policy() : make_least_recently_used();
}

std::unique_ptr<EvictionPolicy> make_least_recently_used() {
  return std::make_unique<LeastRecentlyUsed>();
}

std::unique_ptr<EvictionPolicy> make_reuse_policy(const ReuseOptions& options) {
  return std::make_unique<Reuse>(options);
}

}  // namespace lmkv
