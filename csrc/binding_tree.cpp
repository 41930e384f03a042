#include "binding_tree.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <filesystem>
#include <system_error>
#include <utility>

#include "binding_types.hpp"
#include "store/evictor.hpp"

namespace py = pybind11;

namespace lmkv::python {
namespace {

class PythonVisitor final : public TreeVisitor {
 public:
  explicit PythonVisitor(const py::function& visit) : visit_(visit) {}

  void on_chunk(const RankName& rank, const ChunkKey& key, const FileFacts& facts) override {
    TreeFile file = file_of(facts);
    file.namespace16.assign(rank.namespace16.begin(), rank.namespace16.end());
    file.rank = rank.rank;
    file.key.assign(key.bytes.begin(), key.bytes.end());
    show(std::move(file));
  }

  void on_temporary(int directory, const char* name, const FileFacts& facts) override {
    TreeFile file = file_of(facts);
    std::error_code error;
    const auto opened = "/proc/self/fd/" + std::to_string(directory);
    file.path = std::filesystem::read_symlink(opened, error) / name;
    if (!error) show(std::move(file));
  }

  bool keep_going() override { return raised_ == nullptr; }

  void rethrow() const {
    if (raised_ != nullptr) std::rethrow_exception(raised_);
  }

 private:
  static TreeFile file_of(const FileFacts& facts) {
    TreeFile file;
    file.bytes = facts.bytes;
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

bool scan_files(const std::string& root, const py::function& visit) {
  PythonVisitor visitor(visit);
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

bool remove_file(const std::string& root, const TreeFile& file) {
  if (file.key.empty()) {
    if (::unlink(file.path.c_str()) == 0) return true;
    if (errno == ENOENT) return false;
    throw_os_error(errno, file.path);
  }
  Candidate candidate;
  candidate.key = key_from(file.key);
  candidate.rank = rank_name(file.namespace16, file.rank);
  candidate.modified_ns = file.modified_ns;
  const Eviction outcome = evict(root, candidate, file.changed_ns);
  if (outcome == Eviction::kFailed) {
    throw_os_error(errno, root + ": chunk " + candidate.key.hex());
  }
  return outcome == Eviction::kEvicted;
}

std::uint64_t token_count(const Inspection& inspection) {
  const ChunkIdentity& identity = inspection.identity;
  return std::uint64_t{identity.block_count} * identity.block_tokens;
}

}  // namespace lmkv::python
