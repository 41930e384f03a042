#include "binding_tree.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <limits>
#include <utility>

#include "binding_types.hpp"
#include "common/posix.hpp"
#include "store/file_times.hpp"
#include "store/stripes.hpp"

namespace py = pybind11;

namespace lmkv::python {
namespace {

class PythonVisitor final : public TreeVisitor {
 public:
  PythonVisitor(const py::function& visit, std::int64_t sweep_before_ns)
      : visit_(visit), sweep_before_ns_(sweep_before_ns) {}

  void on_chunk(const RankName& rank, const ChunkKey& key, const FileFacts& facts) override {
    TreeFile file = file_of(facts);
    file.namespace16.assign(rank.namespace16.begin(), rank.namespace16.end());
    file.rank = rank.rank;
    file.key.assign(key.bytes.begin(), key.bytes.end());
    show(std::move(file));
  }

  void on_temporary(int directory, const char* name, const FileFacts& facts) override {
    TreeFile file = file_of(facts);
    file.removed = sweep_before_ns_ != std::numeric_limits<std::int64_t>::min() &&
                   is_abandoned(facts, sweep_before_ns_, system_now_ns()) &&
                   ::unlinkat(directory, name, 0) == 0;
    show(std::move(file));
  }

  bool keep_going() override { return raised_ == nullptr; }

  void rethrow() const {
    if (raised_ != nullptr) std::rethrow_exception(raised_);
  }

 private:
  static TreeFile file_of(const FileFacts& facts) {
    TreeFile file;
    file.bytes = facts.bytes;
    file.size = facts.size;
    file.modified_ns = facts.modified_ns;
    file.changed_ns = facts.changed_ns;
    return file;
  }

  void show(TreeFile file) {
    const py::gil_scoped_acquire gil;
    try {
      visit_(std::move(file));
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    } catch (...) {
      raised_ = std::current_exception();
    }
  }

  const py::function& visit_;
  std::int64_t sweep_before_ns_;
  std::exception_ptr raised_;
};

[[noreturn]] void throw_os_error(int error, const std::string& what) {
  const py::gil_scoped_acquire gil;
  errno = error;
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, what.c_str());
  throw py::error_already_set();
}

RankName rank_name(const std::string& namespace16, std::uint32_t rank) {
  RankName name;
  const bool hex = std::ranges::all_of(
      namespace16, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (!hex || namespace16.size() != name.namespace16.size()) {
    throw ConfigError("a namespace is 16 hex digits, not \"" + namespace16 + "\"");
  }
  std::ranges::copy(namespace16, name.namespace16.begin());
  name.rank = rank;
  return name;
}

}  // namespace

bool scan_files(const std::string& root, const py::function& visit, std::int64_t sweep_before_ns) {
  PythonVisitor visitor(visit, sweep_before_ns);
  ScanOutcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = scan_tree(root, visitor);
  }
  visitor.rethrow();
  return outcome == ScanOutcome::kComplete;
}

Inspection inspect_file(const std::string& root, const std::string& namespace16, std::uint32_t rank,
                        const std::string& key, bool blocks) {
  const RankName name = rank_name(namespace16, rank);
  return inspect_chunk(root, name, key_from(key),
                       blocks ? Inspect::kHeaderAndBlocks : Inspect::kHeader);
}

Eviction remove_chunk(const std::string& root, const TreeFile& file) {
  Candidate candidate;
  candidate.key = key_from(file.key);
  candidate.rank = rank_name(file.namespace16, file.rank);
  candidate.modified_ns = file.modified_ns;
  const Eviction outcome = evict(root, candidate, file.changed_ns);
  if (outcome == Eviction::kFailed) throw_os_error(errno, chunk_file_name(candidate.key));
  return outcome;
}

std::size_t root_of(const std::vector<std::string>& roots, const std::string& key) {
  if (roots.empty()) throw ConfigError("no directory is named");
  return Stripes(roots).of(key_from(key));
}

std::uint64_t token_count(const Inspection& inspection) {
  const ChunkIdentity& identity = inspection.identity;
  return std::uint64_t{identity.block_count} * identity.block_tokens;
}

}  // namespace lmkv::python
