#include "crash_model.hpp"

#include <algorithm>
#include <map>

#include "common/posix.hpp"

namespace lmkv::test {
namespace {

// Before the crash, what a name stood for: a file of the trace, or one that was there before it.
struct Whose {
  int file = -1;
  std::string before;  // its name then
};

class Rebuild {
 public:
  Rebuild(const Trace& trace, const DiskImage& before, const Survival& survival)
      : trace_(trace), before_(before), survival_(survival) {
    image_.directories = before.directories;
    for (const auto& [path, file] : before.files) {
      names_[path] = running_[path] = {-1, path};
      old_times_[path] = file.modified_ns;
    }
  }

  DiskImage run() {
    for (std::size_t i = 0; i < trace_.steps.size(); ++i) {
      if (trace_.steps[i].submitted < survival_.moment) apply(i);
    }
    for (const auto& [path, whose] : names_) {
      image_.files[path] =
          whose.file < 0
              ? DiskImage::File{before_.files.at(whose.before).bytes, old_times_.at(whose.before)}
              : DiskImage::File{content(whose.file), times_[whose.file]};
    }
    return std::move(image_);
  }

 private:
  [[nodiscard]] bool is_over(const Step& step) const { return step.completed < survival_.moment; }

  // Not left open.
  [[nodiscard]] bool is_certain(const Step& step) const {
    if (survival_.process_only) return is_over(step);
    if (!step.is_data() && step.kind != OperationKind::kAllocate) return false;
    return std::ranges::any_of(trace_.steps, [&](const Step& sync) {
      return sync.kind == OperationKind::kSync && sync.file == step.file && is_over(sync) &&
             step.completed < sync.submitted;
    });
  }
  [[nodiscard]] bool keeps(std::size_t i) const {
    return is_certain(trace_.steps[i]) || survival_.keeps(i);
  }

  void apply(std::size_t i) {
    const Step& step = trace_.steps[i];
    switch (step.kind) {
      case OperationKind::kMakeDirectory:
        if (keeps(i) && image_.has_place_for(step.path)) image_.directories.insert(step.path);
        break;
      case OperationKind::kOpen:
        running_[step.path] = {step.file, {}};
        times_[step.file] = made_ns_;
        if (keeps(i)) add_name(step.path, running_.at(step.path));
        break;
      case OperationKind::kRename: rename(i); break;
      case OperationKind::kUnlink:
        running_.erase(step.path);
        if (keeps(i)) names_.erase(step.path);
        break;
      case OperationKind::kSetModified: set_time(i); break;
      case OperationKind::kAllocate: extend(i, step.length); break;
      case OperationKind::kWrite: extend(i, step.offset + step.bytes.size()); break;
      default: break;
    }
  }

  void add_name(const std::string& path, const Whose& whose) {
    if (image_.has_place_for(path)) names_[path] = whose;
  }

  void rename(std::size_t i) {
    const Step& step = trace_.steps[i];
    const Whose whose = running_.at(step.path);
    running_[step.target] = whose;
    running_.erase(step.path);
    const bool kept = keeps(i);
    const bool is_open = !is_certain(step) && survival_.takes_old_name;
    if (is_open ? survival_.takes_old_name(i) : kept) names_.erase(step.path);
    if (kept) add_name(step.target, whose);
  }

  void set_time(std::size_t i) {
    const Step& step = trace_.steps[i];
    if (!keeps(i)) return;
    if (step.file >= 0) {
      times_[step.file] = step.modified_ns;
    } else if (const auto found = running_.find(step.path); found != running_.end()) {
      const Whose& whose = found->second;
      (whose.file >= 0 ? times_[whose.file] : old_times_[whose.before]) = step.modified_ns;
    }
  }

  void extend(std::size_t i, std::size_t end) {
    const int file = trace_.steps[i].file;
    if (keeps(i)) sizes_[file] = std::max(sizes_[file], end);
    if (is_certain(trace_.steps[i])) certain_sizes_[file] = std::max(certain_sizes_[file], end);
  }

  std::vector<std::byte> content(int file) {
    std::size_t size = sizes_[file];
    if (survival_.resize && certain_sizes_[file] == 0) size = survival_.resize(file, size);
    std::vector<std::byte> bytes(size);
    if (survival_.fill) survival_.fill(file, bytes);
    for (std::size_t i = 0; i < trace_.steps.size(); ++i) {
      const Step& step = trace_.steps[i];
      if (!step.is_data() || step.file != file || step.submitted >= survival_.moment) continue;
      const bool certain = is_certain(step);
      for (std::size_t at = 0; at < step.bytes.size(); at += kSector) {
        const std::size_t offset = step.offset + at;
        if (offset >= size) break;
        if (!certain && !survival_.keeps_sector(i, offset)) continue;
        const std::size_t count = std::min({kSector, step.bytes.size() - at, size - offset});
        std::copy_n(step.bytes.begin() + static_cast<std::ptrdiff_t>(at), count,
                    bytes.begin() + static_cast<std::ptrdiff_t>(offset));
      }
    }
    return bytes;
  }

  const Trace& trace_;
  const DiskImage& before_;
  const Survival& survival_;
  const std::int64_t made_ns_ = system_now_ns();

  DiskImage image_;
  std::map<std::string, Whose> running_;  // as the machine saw it
  std::map<std::string, Whose> names_;    // as the disk has it
  std::map<std::string, std::int64_t> old_times_;
  std::map<int, std::int64_t> times_;
  std::map<int, std::size_t> sizes_;
  std::map<int, std::size_t> certain_sizes_;
};

}  // namespace

DiskImage rebuild(const Trace& trace, const DiskImage& before, const Survival& survival) {
  return Rebuild(trace, before, survival).run();
}

}  // namespace lmkv::test
