// Only binds: names, argument types, GIL release. No logic (docs/architecture.md).
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "binding_arena.hpp"
#include "binding_policy.hpp"
#include "binding_remote.hpp"
#include "binding_tree.hpp"
#include "binding_types.hpp"
#include "common/build_info.hpp"
#include "device/device.hpp"
#include "engine/engine.hpp"
#include "engine/transfer_bench.hpp"
#include "io/fault_engine.hpp"
#include "store/directory.hpp"
#include "store/striped_lookup.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace lmkv::python {
namespace {

void bind_build(py::module_& m) {
  py::class_<BuildInfo>(m, "BuildInfo")
      .def_readonly("version", &BuildInfo::version)
      .def_readonly("compiler", &BuildInfo::compiler)
      .def_readonly("liburing", &BuildInfo::liburing)
      .def_readonly("xxhash", &BuildInfo::xxhash)
      .def_readonly("cuda", &BuildInfo::cuda)
      .def_readonly("cuda_architectures", &BuildInfo::cuda_architectures);
  m.def("build_info", &build_info);

  py::class_<CudaStatus>(m, "CudaStatus")
      .def_readonly("device_count", &CudaStatus::device_count)
      .def_readonly("reason", &CudaStatus::reason);
  m.def("cuda_status", &cuda_status, py::call_guard<py::gil_scoped_release>());

  py::class_<RootReport>(m, "RootReport")
      .def_readonly("filesystem", &RootReport::filesystem)
      .def_readonly("shared", &RootReport::shared)
      .def_readonly("shared_reason", &RootReport::shared_reason)
      .def_readonly("io_engine", &RootReport::io_engine)
      .def_readonly("io_engine_reason", &RootReport::io_engine_reason)
      .def_readonly("direct_io", &RootReport::direct_io)
      .def_readonly("direct_io_reason", &RootReport::direct_io_reason)
      .def_readonly("error", &RootReport::error);
  m.def("probe_root", &report_root, "root"_a, "io_engine"_a = "auto", "direct_io"_a = "auto",
        "shared"_a = "auto", "file_mode"_a = "private", py::call_guard<py::gil_scoped_release>());
  m.def("slab_bytes", &slab_bytes, "block_bytes"_a, "blocks_per_chunk"_a);
}

void bind_engine(py::module_& m) {
  const EngineOptions defaults;
  const TransferOptions transfer;
  py::class_<TransferOptions>(m, "TransferOptions")
      .def(py::init(&make_transfer_options), py::kw_only(), "mode"_a = "auto",
           "gather_copy_engine_from"_a = transfer.gather.copy_engine_from,
           "gather_below"_a = "kernel_staged",
           "scatter_copy_engine_from"_a = transfer.scatter.copy_engine_from,
           "scatter_below"_a = "kernel_staged", "thread_blocks"_a = transfer.thread_blocks,
           "staging_bytes"_a = transfer.staging_bytes);
  const RemoteOptions remote;
  py::class_<RemoteOptions>(m, "RemoteOptions")
      .def(py::init(&make_remote_options), py::kw_only(), "name"_a, "directory"_a = "",
           "writes"_a = "write_behind", "capacity"_a = remote.capacity,
           "load_depth"_a = remote.load_depth, "store_depth"_a = remote.store_depth);
  py::class_<EngineOptions>(m, "EngineOptions")
      .def(py::init(&make_options), py::kw_only(), "root"_a, "namespace"_a, "rank"_a, "segments"_a,
           "block_count"_a, "block_tokens"_a, "blocks_per_chunk"_a, "host_memory"_a,
           "device"_a = defaults.device, "io_engine"_a = "auto", "direct_io"_a = "auto",
           "io_threads"_a = defaults.io_threads, "request_bytes"_a = defaults.request_bytes,
           "load_depth"_a = defaults.load_depth, "store_depth"_a = defaults.store_depth,
           "transfer"_a = transfer, "capacity"_a = defaults.capacity,
           "free_space_floor"_a = defaults.free_space_floor, "load_timeout"_a = 0.0,
           "shared"_a = "auto", "file_mode"_a = "private", "eviction"_a = "reuse",
           "max_age"_a = 0.0, "arena_directory"_a = "", "remote"_a = remote);

  py::native_enum<CompletionKind>(m, "CompletionKind", "enum.Enum")
      .value("GATHERED", CompletionKind::kGathered)
      .value("STORED", CompletionKind::kStored)
      .value("LOADED", CompletionKind::kLoaded)
      .finalize();
  py::class_<Completion>(m, "Completion")
      .def_readonly("kind", &Completion::kind)
      .def_property_readonly("job", &job_number)
      .def_readonly("failed_chunks", &Completion::failed_chunks)
      .def_readonly("error", &Completion::error)
      .def_readonly("memory_chunks", &Completion::memory_chunks)
      .def_readonly("cancelled_chunks", &Completion::cancelled_chunks)
      .def_readonly("remote_chunks", &Completion::remote_chunks)
      .def_readonly("seconds", &Completion::seconds);

  py::native_enum<RemoteLane>(m, "RemoteLane", "enum.Enum")
      .value("LOADS", RemoteLane::kLoads)
      .value("STORES", RemoteLane::kStores)
      .finalize();
  py::native_enum<RemoteOrderKind>(m, "RemoteOrderKind", "enum.Enum")
      .value("GET", RemoteOrderKind::kGet)
      .value("PUT", RemoteOrderKind::kPut)
      .value("REMOVE", RemoteOrderKind::kRemove)
      .finalize();
  py::native_enum<RemoteResult>(m, "RemoteResult", "enum.Enum")
      .value("DONE", RemoteResult::kDone)
      .value("THERE", RemoteResult::kThere)
      .value("MISSING", RemoteResult::kMissing)
      .value("BAD", RemoteResult::kBad)
      .value("FAILED", RemoteResult::kFailed)
      .value("UNSETTLED", RemoteResult::kUnsettled)
      .finalize();
  py::class_<RemoteOrder>(m, "RemoteOrder")
      .def_readonly("ticket", &RemoteOrder::ticket)
      .def_readonly("kind", &RemoteOrder::kind)
      .def_property_readonly("key", &key_of)
      .def_property_readonly("address", &address_of)
      .def_readonly("bytes", &RemoteOrder::bytes);

  m.def("fill", &fill, "address"_a, "size"_a, "source"_a);

  // Its destructor waits for what is in flight: without the GIL.
  py::class_<Engine>(m, "Engine", py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&make_engine), "options"_a, py::call_guard<py::gil_scoped_release>())
      .def("store", &store_chunk, "key"_a, "token_begin"_a, "block_ids"_a, "stream"_a = 0,
           "used_at"_a = py::none())
      .def("load", &load_chunks, "chunks"_a, "stream"_a = 0, "used_at"_a = py::none())
      .def("cancel", &cancel_load, "job"_a)
      .def("touch", &touch_chunks, "chunks"_a, "used_at"_a = py::none())
      .def("poll", &Engine::poll)
      .def("take_evicted", &take_evicted)
      .def("stats", &Engine::stats)
      .def("info", &Engine::info)
      .def("drain", &drain_engine, "timeout_s"_a, py::call_guard<py::gil_scoped_release>())
      .def("roots_out_of_service", &Engine::roots_out_of_service)
      .def("slab_memory", &slab_memory)
      .def("take_remote", &take_remote, "lane"_a, "most_bytes"_a, "timeout_s"_a)
      .def("finish_remote", &finish_remote, "ticket"_a, "result"_a, "message"_a = "")
      .def("close", &close_engine, "timeout_s"_a = std::numeric_limits<double>::infinity());
}

void bind_bench(py::module_& m) {
  py::class_<Faults, std::shared_ptr<Faults>>(m, "Faults")
      .def(py::init(&make_faults), "spec"_a = "", "seed"_a = 0)
      .def("change", &change_faults, "spec"_a)
      .def("release", &Faults::release)
      .def("hanging", &Faults::hanging)
      .def("counts", &Faults::counts);
  m.def("bench_engine", &make_measured_engine, "options"_a, "faults"_a = py::none(),
        py::call_guard<py::gil_scoped_release>());
  m.def("fault_engine", &make_engine_with_faults, "options"_a, py::arg("faults").none(false),
        py::call_guard<py::gil_scoped_release>());
  py::class_<TransferBench>(m, "TransferBench", py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&make_transfer_bench), py::kw_only(), "device"_a, "segments"_a, "host_bytes"_a,
           "transfer"_a = TransferOptions(), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("address", &bench_address)
      .def("run", &run_transfers, "direction"_a, "transfers"_a, "stream"_a = 0)
      .def("info", &TransferBench::info);
}

void bind_directory(py::module_& m) {
  py::class_<Directory>(m, "Directory")
      .def(py::init(&make_directory), py::kw_only(), "root"_a, "namespace"_a, "ranks"_a)
      .def("set_out_of_service", &Directory::set_out_of_service, "roots"_a)
      .def("lookup", &lookup_keys, "keys"_a)
      .def("present", &present_keys, "keys"_a);

  py::class_<StripedLookup>(m, "LookupService", py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&make_lookup_service), "directory"_a)
      .def("lookup", &lookup_within, "keys"_a, "patience_s"_a)
      .def("present", &present_within, "keys"_a, "patience_s"_a)
      .def("forget", &StripedLookup::forget, py::call_guard<py::gil_scoped_release>())
      .def("given_up", &StripedLookup::given_up, py::call_guard<py::gil_scoped_release>());
}

void bind_tree(py::module_& m) {
  py::class_<TreeFile>(m, "TreeFile")
      .def_readonly("namespace", &TreeFile::namespace16)
      .def_readonly("rank", &TreeFile::rank)
      .def_property_readonly("key", [](const TreeFile& file) { return py::bytes(file.key); })
      .def_readonly("bytes", &TreeFile::bytes)
      .def_readonly("size", &TreeFile::size)
      .def_readonly("modified_ns", &TreeFile::modified_ns)
      .def_readonly("changed_ns", &TreeFile::changed_ns)
      .def_readonly("removed", &TreeFile::removed);
  m.def("scan_tree", &scan_files, "root"_a, "visit"_a,
        "sweep_before_ns"_a = std::numeric_limits<std::int64_t>::min());

  py::native_enum<Eviction>(m, "Removal", "enum.Enum")
      .value("REMOVED", Eviction::kEvicted)
      .value("GONE", Eviction::kGone)
      .value("KEPT", Eviction::kKept)
      .finalize();

  py::native_enum<Finding>(m, "Finding", "enum.Enum")
      .value("SOUND", Finding::kSound)
      .value("BAD", Finding::kBad)
      .value("GONE", Finding::kGone)
      .value("UNREADABLE", Finding::kUnreadable)
      .finalize();
  py::class_<Inspection>(m, "Inspection")
      .def_readonly("finding", &Inspection::finding)
      .def_readonly("text", &Inspection::text)
      .def_readonly("bytes", &Inspection::bytes)
      .def_property_readonly("tokens", &token_count)
      .def_property_readonly("token_begin",
                             [](const Inspection& i) { return i.identity.token_begin; })
      .def_property_readonly("block_tokens",
                             [](const Inspection& i) { return i.identity.block_tokens; })
      .def_property_readonly("block_bytes",
                             [](const Inspection& i) { return i.identity.block_bytes; });
  m.def("inspect_chunk", &inspect_file, "root"_a, "namespace"_a, "rank"_a, "key"_a, "blocks"_a,
        py::call_guard<py::gil_scoped_release>());
  m.def("root_of", &root_of, "roots"_a, "key"_a);
  m.def("remove_chunk", &remove_chunk, "root"_a, "file"_a,
        py::call_guard<py::gil_scoped_release>());
}

void bind_policy(py::module_& m) {
  py::class_<EvictionPolicy>(m, "EvictionPolicy")
      .def(py::init(&make_policy), "order"_a)
      .def("scan", &scan_worths, "keys"_a, "modified_ns"_a, "now_ns"_a)
      .def("evicted", &note_evicted, "keys"_a);
  m.def("use_stamp", &stamp_of, "used_at"_a, "token_begin"_a, "now"_a);
  m.def("renewed", &renewed, "found_ns"_a, "stamp_ns"_a);
  m.attr("USE_TICK_SECONDS") = kUseTick.count();
}

void bind_arena(py::module_& m) {
  // Its destructor unmaps: without the GIL.
  py::class_<ArenaView>(m, "ArenaView", py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&make_arena_view), py::kw_only(), "directory"_a, "slab_bytes"_a, "file_mode"_a,
           "namespace"_a, "ranks"_a, py::call_guard<py::gil_scoped_release>())
      .def("leading", &leading_in_arena, "keys"_a)
      .def("present", &present_in_arena, "keys"_a)
      .def("__contains__", &is_in_arena, "key"_a);

  py::class_<ArenaReport::Member>(m, "ArenaMember")
      .def_readonly("pid", &ArenaReport::Member::pid)
      .def_readonly("is_alive", &ArenaReport::Member::is_alive);
  py::class_<ArenaCounts>(m, "ArenaCounts")
      .def_readonly("total", &ArenaCounts::total)
      .def_readonly("unused", &ArenaCounts::unused)
      .def_readonly("bare", &ArenaCounts::bare)
      .def_readonly("filling", &ArenaCounts::filling)
      .def_readonly("ready", &ArenaCounts::ready)
      .def_readonly("held", &ArenaCounts::held)
      .def_readonly("orphaned", &ArenaCounts::orphaned);
  py::class_<ArenaReport>(m, "ArenaReport")
      .def_readonly("path", &ArenaReport::path)
      .def_readonly("bytes", &ArenaReport::bytes)
      .def_readonly("bytes_taken", &ArenaReport::bytes_taken)
      .def_readonly("slab_bytes", &ArenaReport::slab_bytes)
      .def_readonly("slots", &ArenaReport::slots)
      .def_readonly("members", &ArenaReport::members)
      .def_readonly("repairs", &ArenaReport::repairs)
      .def_readonly("fault", &ArenaReport::fault);
  m.def("arena_report", &arena_report, "directory"_a, "slab_bytes"_a, "file_mode"_a = "private",
        "thorough"_a = false, py::call_guard<py::gil_scoped_release>());
  m.def("remove_arena", &remove_arena_of, "directory"_a, "slab_bytes"_a, "file_mode"_a = "private",
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace
}  // namespace lmkv::python

PYBIND11_MODULE(_C, m) {
  m.doc() = "lmkv's C++ core. See _C.pyi.";
  const py::object config_error =
      py::register_exception<lmkv::python::ConfigError>(m, "ConfigError", PyExc_ValueError);
  config_error.attr("__module__") = "lmkv";
  const py::object device_error =
      py::register_exception<lmkv::DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  device_error.attr("__module__") = "lmkv";
  const py::object arena_error =
      py::register_exception<lmkv::ArenaError>(m, "ArenaError", PyExc_RuntimeError);
  arena_error.attr("__module__") = "lmkv";
  lmkv::python::bind_build(m);
  lmkv::python::bind_engine(m);
  lmkv::python::bind_bench(m);
  lmkv::python::bind_directory(m);
  lmkv::python::bind_tree(m);
  lmkv::python::bind_policy(m);
  lmkv::python::bind_arena(m);
}
