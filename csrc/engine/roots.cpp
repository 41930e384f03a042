#include "engine/roots.hpp"

#include <cerrno>
#include <memory>
#include <utility>

#include "store/use_stamp.hpp"

namespace lmkv {
namespace {

FileIoOptions file_options(const EngineOptions& options, const std::string& path,
                           const RootProbe& probe) {
  FileIoOptions files;
  files.root = path;
  files.place = probe.place;
  files.caching = probe.caching;
  files.publish = probe.publish;
  files.access = options.access;
  files.request_bytes = options.request_bytes;
  files.read_depth = options.load_depth;
  files.write_depth = options.store_depth;
  files.renew = renewed;
  return files;
}

HousekeepingOptions housekeeping_options(const EngineOptions& options) {
  HousekeepingOptions housekeeping = options.housekeeping;
  housekeeping.access = options.access;
  return housekeeping;
}

SpaceLimits space_limits(const EngineOptions& options) {
  return {options.capacity, options.free_space_floor / 100, options.store_depth};
}

}  // namespace

Root::Root(const EngineOptions& options, const std::string& path, RootParts parts,
           const SlabMemory& slabs)
    : paths_(path, options.namespace_digest, options.rank),
      probe_(std::move(parts.probe)),
      io_engine_reason_(std::move(parts.io_engine_reason)),
      housekeeper_(paths_, probe_.place, space_limits(options), housekeeping_options(options)),
      io_engine_(std::move(parts.io_engine)),
      registration_error_(io_engine_->register_memory(slabs)),
      files_(*io_engine_, file_options(options, path, probe_)) {}

void Root::read(Read request) {
  FileRead read;
  read.path = paths_.chunk(request.key);
  read.buffer = request.buffer;
  read.bytes = request.bytes;
  read.group = request.group;
  read.done = std::move(request.done);
  files_.read(std::move(read));
}

void Root::write(Write request) {
  const std::size_t bytes = request.bytes;
  const auto reserved = std::make_shared<bool>(false);  // in the ledger of space
  FileWrite write;
  write.path = paths_.chunk(request.key);
  write.temporary = paths_.unique_temporary(request.key);
  write.directories = paths_.directories_for(request.key);
  write.buffer = request.buffer;
  write.bytes = bytes;
  write.modified_ns = request.used_ns;
  write.admit = [this, bytes, reserved] {
    return *reserved = housekeeper_.space().try_reserve(bytes);
  };
  write.done = [this, bytes, reserved, done = std::move(request.done)](const Status& status,
                                                                       WriteOutcome outcome) {
    settle_space(bytes, *reserved, status, outcome);
    done(status, outcome);
  };
  files_.write(std::move(write));
}

void Root::settle_space(std::size_t bytes, bool reserved, const Status& status,
                        WriteOutcome outcome) {
  SpaceLedger& space = housekeeper_.space();
  if (reserved) space.settle(bytes, outcome == WriteOutcome::kWritten);
  if (status.is_full_disk()) space.met_full_disk(bytes, status.error_number() == EDQUOT);
}

void Root::remove(const ChunkKey& key, std::function<void(Status)> done) {
  files_.remove(paths_.chunk(key), std::move(done));
}

void Root::touch(const ChunkKey& key, std::int64_t used_ns) {
  files_.touch(paths_.chunk(key), used_ns);
}

bool Root::has_room(std::size_t bytes) { return housekeeper_.space().has_room(bytes); }

std::string Root::name_of(const ChunkKey& key) const { return paths_.chunk(key); }

void Root::add_stats(std::map<std::string, std::uint64_t>& all) const {
  for (const auto& [name, value] : housekeeper_.stats()) all[name] += value;
  all["chunks_touched"] += files_.touched();
  all["touches_failed"] += files_.touches_failed();
  all["direct_io_fallbacks"] += files_.direct_io_fallbacks();
  all["load_bytes_in_flight"] += files_.read_bytes_in_flight();
  all["store_bytes_in_flight"] += files_.write_bytes_in_flight();
  all["loads_out_of_service"] += loads.is_out() ? 1 : 0;
  all["stores_out_of_service"] += stores.is_out() ? 1 : 0;
}

std::map<std::string, std::string> Root::info() const {
  const bool fell_back = files_.direct_io_fallbacks() > 0;
  std::map<std::string, std::string> all = io_engine_->info();
  if (!registration_error_.empty()) all["registered_buffers"] = "no: " + registration_error_;
  all.merge(std::map<std::string, std::string>{
      {"filesystem", probe_.filesystem},
      {"shared", probe_.is_shared() ? "yes" : "no"},
      {"shared_reason", probe_.shared_reason},
      {"last_refusal", std::string(in_words(housekeeper_.space().last_refusal()))},
      {"io_engine", std::string(io_engine_->name())},
      {"io_engine_reason", io_engine_reason_},
      {"direct_io", files_.caching() == Caching::kDirect ? "on" : "off"},
      {"direct_io_reason", fell_back ? "refused by the filesystem while in use" : probe_.reason},
  });
  return all;
}

Roots::Roots(const EngineOptions& options, std::vector<RootParts> parts, const SlabMemory& slabs)
    : paths_(options.roots), stripes_(options.roots) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    errors_.push_back(parts[i].error);
    roots_.push_back(parts[i].error.empty()
                         ? std::make_unique<Root>(options, paths_[i], std::move(parts[i]), slabs)
                         : nullptr);
    if (roots_.back() != nullptr) usable_.push_back(roots_.back().get());
  }
}

std::map<std::string, std::uint64_t> Roots::stats() const {
  std::map<std::string, std::uint64_t> all;
  for (const std::unique_ptr<Root>& root : roots_) {
    if (root != nullptr) {
      root->add_stats(all);
    } else {
      ++all["loads_out_of_service"];
      ++all["stores_out_of_service"];
    }
  }
  return all;
}

std::map<std::string, std::string> Roots::info() const {
  std::map<std::string, std::string> all;
  std::string out;
  const auto add_out = [&](std::size_t i, const std::string& what, const std::string& name,
                           const std::string& why) {
    if (why.empty()) return;
    out += (out.empty() ? "" : "; ") + paths_[i] + what + why;
    all["root" + std::to_string(i) + name] = why;
  };
  for (std::size_t i = 0; i < roots_.size(); ++i) {
    if (roots_[i] == nullptr) {
      add_out(i, ": ", "_error", errors_[i]);
      continue;
    }
    add_out(i, " (loads): ", "_loads_out", roots_[i]->loads.reason());
    add_out(i, " (stores): ", "_stores_out", roots_[i]->stores.reason());
    for (const auto& [name, value] : roots_[i]->info()) {
      const auto [first, is_first] = all.try_emplace(name, value);
      if (!is_first && first->second != value) all["root" + std::to_string(i) + "_" + name] = value;
    }
  }
  all["roots_out"] = out;
  return all;
}

std::vector<std::size_t> Roots::out_of_service() const {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < roots_.size(); ++i) {
    if (roots_[i] == nullptr || roots_[i]->loads.is_out()) out.push_back(i);
  }
  return out;
}

}  // namespace lmkv
