// The directories that an engine keeps its chunks in.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/types.hpp"
#include "engine/engine_options.hpp"
#include "engine/tier.hpp"
#include "io/direct_file.hpp"
#include "store/directory.hpp"
#include "store/housekeeper.hpp"
#include "store/stripes.hpp"

namespace lmkv {

// One of them. Its I/O threads are its own: one that hangs keeps no other waiting.
class Root final : public Tier {
 public:
  Root(const EngineOptions& options, const std::string& path, RootParts parts,
       const SlabMemory& slabs);

  void read(Read request) override;
  void write(Write request) override;
  void remove(const ChunkKey& key, std::function<void(Status)> done) override;
  void touch(const ChunkKey& key, std::int64_t used_ns) override;
  [[nodiscard]] bool has_room(std::size_t bytes) override;
  void cancel(std::uint64_t group) override { files_.cancel(group); }
  [[nodiscard]] bool is_reading() const override { return files_.is_reading(); }
  [[nodiscard]] std::string name_of(const ChunkKey& key) const override;
  void begin_shutdown() override { files_.begin_shutdown(); }
  [[nodiscard]] bool wait_idle(std::chrono::duration<double> timeout) override {
    return files_.wait_idle(timeout);
  }

  // Housekeeping may be on its way in a system call for a while (Housekeeper::stop).
  void stop_housekeeping() { housekeeper_.stop(); }
  [[nodiscard]] std::vector<ChunkKey> take_evicted() { return housekeeper_.take_evicted(); }

  void add_stats(std::map<std::string, std::uint64_t>& all) const;
  [[nodiscard]] std::map<std::string, std::string> info() const;
  [[nodiscard]] IoEngine& io_engine() { return *io_engine_; }

 private:
  void settle_space(std::size_t bytes, bool reserved, const Status& status, WriteOutcome outcome);

  const ChunkPaths paths_;
  const RootProbe probe_;
  const std::string io_engine_reason_;
  Housekeeper housekeeper_;  // before files_, whose callbacks use it
  std::unique_ptr<IoEngine> io_engine_;
  const std::string registration_error_;  // of slabs, with the I/O engine
  FileIo files_;
};

// Thread-safe once made.
class Roots {
 public:
  // `slabs` outlive it.
  Roots(const EngineOptions& options, std::vector<RootParts> parts, const SlabMemory& slabs);

  // The root of a chunk; nullptr when it could not be used at start.
  [[nodiscard]] Root* of(const ChunkKey& key) const { return roots_[stripes_.of(key)].get(); }

  // Roots that can be used.
  [[nodiscard]] const std::vector<Root*>& usable() const { return usable_; }

  // Sums over the roots; "loads_out_of_service" and "stores_out_of_service" count roots.
  [[nodiscard]] std::map<std::string, std::uint64_t> stats() const;
  // Of the first root that can be used; of the others "root<i>_<key>" where it differs. Beside
  // these "roots_out": paths and reasons of those that are out of service, or ""; and of each root
  // that is out "root<i>_error" (at start, for good), "root<i>_loads_out" or "root<i>_stores_out".
  [[nodiscard]] std::map<std::string, std::string> info() const;
  // Indices of roots whose loads are out of service.
  [[nodiscard]] std::vector<std::size_t> out_of_service() const;

 private:
  const std::vector<std::string> paths_;
  const Stripes stripes_;
  std::vector<std::string> errors_;           // at start
  std::vector<std::unique_ptr<Root>> roots_;  // nullptr where there is an error
  std::vector<Root*> usable_;
};

}  // namespace lmkv
