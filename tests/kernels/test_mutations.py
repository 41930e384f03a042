"""Faults seeded into the GPU code, one at a time: each must make the tests of it fail.

What proves the kernels here is a test; this proves the test.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from cpp_build import ROOT, build

DEVICE = ROOT / "csrc" / "device"
KERNELS = ROOT / "tests" / "kernels"

# name: (file, what stands there, what is put in its place)
FAULTS = {
    # kernels.cuh
    "a_segment_too_far": (
        "kernels.cuh",
        "launch.segments[middle].first_tile <= tile",
        "launch.segments[middle].first_tile < tile",
    ),
    "tail_dropped": (
        "kernels.cuh",
        "if (lane < bytes - tail_begin)",
        "if (lane + 1 < bytes - tail_begin)",
    ),
    "head_dropped": ("kernels.cuh", "if (lane < head)", "if (lane + 1 < head)"),
    "head_not_clipped": ("kernels.cuh", "if (head > bytes) head = bytes;", ""),
    "alignment_ignored": ("kernels.cuh", "if (skew % sizeof(uint4) == 0)", "if (true)"),
    "words_by_fours_at_any_address": (
        "kernels.cuh",
        "skew % sizeof(std::uint32_t) == 0",
        "skew % 2 == 0",
    ),
    "word_dropped": (
        "kernels.cuh",
        "(bytes - head) / static_cast",
        "(bytes - head - 1) / static_cast",
    ),
    "one_word_more": (
        "kernels.cuh",
        "if (at + i * kWarpLanes < words) __stcs",
        "if (at + i * kWarpLanes <= words) __stcs",
    ),
    "round_overlaps": (
        "kernels.cuh",
        "at += kVectorsInFlight * kWarpLanes",
        "at += (kVectorsInFlight + 1) * kWarpLanes",
    ),
    "tiles_of_one_block_only": (
        "kernels.cuh",
        "launch.block_count * launch.tiles_per_block",
        "launch.tiles_per_block",
    ),
    "warp_left_out": (
        "kernels.cuh",
        "tile += warps)",
        "tile += warps + 1)",
    ),
    "last_warp_idle": (
        "kernels.cuh",
        "blockIdx.x * warps_per_block + threadIdx.x / kWarpLanes; tile < tiles",
        "blockIdx.x * warps_per_block + threadIdx.x / kWarpLanes; tile + 1 < tiles",
    ),
    "int32_offset": (
        "kernels.cuh",
        "segment.base + copy.block * segment.block_stride + offset",
        "segment.base + static_cast<std::uint32_t>(copy.block * segment.block_stride) + offset",
    ),
    "signed_offset": (
        "kernels.cuh",
        "segment.base + copy.block * segment.block_stride + offset",
        "segment.base + static_cast<std::int32_t>(copy.block * segment.block_stride) + offset",
    ),
    "stride_is_size": (
        "kernels.cuh",
        "copy.block * segment.block_stride",
        "copy.block * segment.bytes",
    ),
    "offset_in_payload_forgotten": (
        "kernels.cuh",
        "copy.contiguous + segment.payload_offset + offset",
        "copy.contiguous + offset",
    ),
    "tile_of_another_segment": (
        "kernels.cuh",
        "std::uint64_t{tile_of_block - segment.first_tile} * kTileBytes",
        "std::uint64_t{tile_of_block} * kTileBytes",
    ),
    "end_of_segment_ignored": (
        "kernels.cuh",
        "rest < kTileBytes ? rest : kTileBytes",
        "kTileBytes",
    ),
    "always_gathers": (
        "kernels.cuh",
        "if constexpr (direction == Direction::kGather)",
        "if constexpr (true)",
    ),
    # block_kernel.cuh, kernel_paths.cuh
    "second_launch_overwrites_the_first": (
        "block_kernel.cuh",
        "contiguous += block_bytes;",
        "contiguous += i < 200 ? block_bytes : 0;",
    ),
    "full_buffer_not_waited_for": (
        "kernel_paths.cuh",
        "error = cudaStreamWaitEvent(empties, events.full.get(), 0);",
        "error = cudaSuccess;",
    ),
    "free_buffer_not_waited_for": (
        "kernel_paths.cuh",
        "cudaError_t error = cudaStreamWaitEvent(fills, events.free.get(), 0);",
        "cudaError_t error = cudaSuccess;",
    ),
    "pieces_overwrite_each_other": (
        "kernel_paths.cuh",
        "host += piece.size() * block_bytes_;",
        "",
    ),
    # cuda_lane.hpp, cuda_health.hpp, cuda_fence.hpp
    "fence_not_waited_for": (
        "cuda_lane.hpp",
        "error = fence.wait_on(path_->paged_stream());",
        "static_cast<void>(fence);",
    ),
    "done_before_the_last_stream": (
        "cuda_lane.hpp",
        "cudaEventRecord(done.get(), path_->last_stream())",
        "cudaEventRecord(done.get(), path_->paged_stream())",
    ),
    "failure_reported_too_early": ("cuda_lane.hpp", "path_->drain();", ""),
    "one_stream_not_drained": (
        "kernel_paths.cuh",
        "static_cast<void>(cudaStreamSynchronize(copy_stream_.get()));",
        "",
    ),
    "fence_destroyed_anywhere": (
        "cuda_fence.hpp",
        "pool_->give_back(event_);",
        "static_cast<void>(cudaEventDestroy(event_));",
    ),
    "batches_at_any_address": ("copy_engine_path.hpp", "if (batches_) {", "if (true) {"),
    "lost_context_forgotten": (
        "cuda_health.hpp",
        "lost_.store(true, std::memory_order_release);",
        "",
    ),
}


# What has to be compiled again for a fault in a file: the source that includes it.
SOURCES = {
    "kernels.cuh": "test_kernels",
    "block_kernel.cuh": "emulated_device",
    "kernel_paths.cuh": "emulated_device",
    "copy_engine_path.hpp": "emulated_device",
    "cuda_fence.hpp": "emulated_device",
    "cuda_health.hpp": "emulated_device",
    "cuda_lane.hpp": "emulated_device",
}


def outcome(folder: Path, name: str, original: str = "", changed: str = "") -> str:
    """Builds the tests with a fault in ``name`` and runs them: "" if they pass, or how they end."""
    text = (DEVICE / name).read_text(encoding="utf-8")
    if original:
        assert text.count(original) == 1, f"{name} has no longer, or not only once: {original}"
    mutated = folder / "device" / name
    mutated.parent.mkdir(parents=True)
    mutated.write_text(text.replace(original, changed) if original else text, encoding="utf-8")
    built = build("")
    source = SOURCES[name]
    compiled = built / "tests" / "kernels" / "CMakeFiles" / "lmkv_kernel_tests.dir"
    includes = [folder, KERNELS / "emulated_gpu", KERNELS, ROOT / "csrc"]
    flags = ["-std=c++20", "-O1", "-w", *(f"-I{path}" for path in includes)]
    one = folder / f"{source}.o"
    subprocess.run(["g++", *flags, "-c", KERNELS / f"{source}.cpp", "-o", one], check=True)
    others = [compiled / "emulated_gpu" / "emulated_gpu.cpp.o"]
    if source != "test_kernels":
        others += [compiled / "test_cuda_device.cpp.o", compiled / "test_cuda_engine.cpp.o"]
    libraries = ["-lgtest", "-lgtest_main", "-lxxhash", "-luring", "-lpthread"]
    program = folder / "tests"
    link = ["g++", "-o", program, one, *others, built / "liblmkv_core.a", *libraries]
    subprocess.run(link, check=True)
    command = [program, "--gtest_brief=1", "--gtest_fail_fast"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    except subprocess.TimeoutExpired:  # on a busy machine that would be said of any fault
        return ""
    return "" if result.returncode == 0 else f"{result.returncode}: {result.stdout[-2000:]}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Future[str]]:
    """How the tests end for every fault; as many at a time as there are cores."""
    build("")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = {fault: tmp_path_factory.mktemp(fault) for fault in FAULTS}
        return {fault: pool.submit(outcome, folders[fault], *FAULTS[fault]) for fault in FAULTS}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SOURCES)
def test_without_a_fault_the_tests_pass(name: str, tmp_path: Path) -> None:
    assert outcome(tmp_path, name) == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_makes_the_tests_fail(
    fault: str, outcomes: Mapping[str, Future[str]]
) -> None:
    ended = outcomes[fault].result()
    print(ended)
    assert ended, f"no test noticed: {FAULTS[fault][2]}"
