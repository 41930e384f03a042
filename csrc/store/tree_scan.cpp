#include "store/tree_scan.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "common/posix.hpp"

namespace lmkv {
namespace {

constexpr std::string_view kVersionName = "v1";
constexpr std::string_view kTemporaryName = "tmp";
constexpr int kDirectoryFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

// Longer than any chunk: such a file is a hole or damage, and must not evict all others.
constexpr std::uint64_t kLongestBelieved = std::uint64_t{16} << 30;

constexpr std::int64_t kSettlesNs = 30'000'000'000;  // how long a filesystem may allocate late

class Walk {
 public:
  explicit Walk(TreeVisitor& visitor) : visitor_(visitor) {}

  ScanOutcome run(const std::string& root) {
    // The root may be a link, which is why it is not opened as what is below it is.
    UniqueFd directory(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory.get() < 0) return ScanOutcome::kIncomplete;
    UniqueFd version = open_below(directory.get(), kVersionName.data());
    for_each(std::move(version), [this](int parent, const char* name) {
      if (is_namespace_name(name)) walk_namespace(parent, name);
    });
    if (stopped_) return ScanOutcome::kStopped;
    return failed_ ? ScanOutcome::kIncomplete : ScanOutcome::kComplete;
  }

 private:
  void walk_namespace(int parent, const char* name) {
    std::copy_n(name, rank_.namespace16.size(), rank_.namespace16.begin());
    for_each(open_below(parent, name), [this](int inside, const char* entry) {
      if (entry == kTemporaryName) return walk_temporaries(inside);
      if (const auto rank = rank_of(entry)) {
        rank_.rank = *rank;
        walk_rank(inside, entry);
      }
    });
  }

  void walk_rank(int parent, const char* name) {
    for_each(open_below(parent, name), [this](int inside, const char* entry) {
      if (entry == kTemporaryName) return walk_temporaries(inside);
      if (is_fan_out_name(entry)) walk_chunks(inside, entry);
    });
  }

  void walk_chunks(int parent, const char* fan_out) {
    const std::string digits = fan_out;
    for_each(open_below(parent, fan_out), [&](int inside, const char* entry) {
      const auto key = key_of(entry, digits);
      FileFacts facts;
      if (key) {
        if (look(inside, entry, facts)) visitor_.on_chunk(rank_, *key, facts);
      } else if (is_unfinished_name(entry) && look(inside, entry, facts)) {
        visitor_.on_temporary(inside, entry, facts);
      }
    });
  }

  void walk_temporaries(int parent) {
    for_each(open_below(parent, kTemporaryName.data()), [this](int inside, const char* entry) {
      FileFacts facts;
      if (is_temporary_name(entry) && look(inside, entry, facts)) {
        visitor_.on_temporary(inside, entry, facts);
      }
    });
  }

  bool look(int directory, const char* name, FileFacts& facts) {
    if (read_facts(directory, name, facts)) return true;
    if (errno != 0 && !is_gone(errno)) failed_ = true;
    return false;
  }

  // A link in a directory's place is not followed, but stores would: what it leads to is not seen.
  UniqueFd open_below(int parent, const char* name) {
    UniqueFd opened(::openat(parent, name, kDirectoryFlags));
    if (opened.get() < 0 && (!is_gone(errno) || is_link(parent, name))) failed_ = true;
    return opened;
  }

  static bool is_link(int parent, const char* name) {
    struct stat status{};
    return ::fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(status.st_mode);
  }

  template <typename F>
  void for_each(UniqueFd directory, F&& visit) {
    if (directory.get() < 0) return;
    const int descriptor = ::dup(directory.get());  // closedir closes the one it was given
    const auto close = [](DIR* stream) { ::closedir(stream); };
    const std::unique_ptr<DIR, decltype(close)> stream(descriptor < 0 ? nullptr
                                                                      : ::fdopendir(descriptor));
    if (stream == nullptr) {
      if (descriptor >= 0) ::close(descriptor);
      failed_ = true;
      return;
    }
    for (;;) {
      if (stopped_ || !visitor_.keep_going()) {
        stopped_ = true;
        return;
      }
      errno = 0;
      const dirent* const entry = ::readdir(stream.get());
      if (entry == nullptr) {
        if (errno != 0 && !is_gone(errno)) failed_ = true;
        return;
      }
      visit(directory.get(), entry->d_name);
    }
  }

  TreeVisitor& visitor_;
  RankName rank_;
  bool failed_ = false;
  bool stopped_ = false;
};

}  // namespace

ScanOutcome scan_tree(const std::string& root, TreeVisitor& visitor) {
  return Walk(visitor).run(root);
}

std::uint64_t space_of(std::uint64_t allocated, std::uint64_t size, std::int64_t changed_ns,
                       std::int64_t now_ns) {
  if (size > kLongestBelieved) return allocated;
  const bool says_nothing = allocated == 0;
  const bool may_be_late = allocated < size && changed_ns > now_ns - kSettlesNs;
  return says_nothing || may_be_late ? size : allocated;
}

bool read_facts(int directory, const char* name, FileFacts& facts, Look look) {
  struct statx status{};
  const bool seen = look == Look::kAfresh ? stat_afresh(directory, name, status)
                                          : ::statx(directory, name, AT_SYMLINK_NOFOLLOW,
                                                    STATX_BASIC_STATS, &status) == 0;
  if (!seen) return false;
  if (!S_ISREG(status.stx_mode)) {
    errno = 0;
    return false;
  }
  constexpr std::uint64_t kSector = 512;  // of stx_blocks, whatever the filesystem's own blocks are
  const std::uint64_t allocated = status.stx_blocks * kSector;
  facts.modified_ns = nanoseconds(status.stx_mtime);
  facts.changed_ns = nanoseconds(status.stx_ctime);
  // A filesystem that counts whole seconds: it changed at some time within that one.
  if (status.stx_ctime.tv_nsec == 0) facts.changed_ns += 999'999'999;
  facts.size = status.stx_size;
  facts.bytes = space_of(allocated, facts.size, facts.changed_ns, system_now_ns());
  return true;
}

UniqueFd open_chunk_directory(const std::string& root, const RankName& rank, const ChunkKey& key) {
  UniqueFd directory(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (const std::string& name :
       {std::string(kVersionName), std::string(rank.namespace16.begin(), rank.namespace16.end()),
        "r" + std::to_string(rank.rank), key.hex().substr(0, kFanOutDigits)}) {
    if (directory.get() < 0) break;
    directory = UniqueFd(::openat(directory.get(), name.c_str(), kDirectoryFlags));
  }
  return directory;
}

}  // namespace lmkv
