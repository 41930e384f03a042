"""The fuzz targets: clean over their corpus and a second of more; and they find seeded faults."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "fuzz"
TARGETS = ("chunk", "names", "fault_spec", "lease")

# name: (target, file under csrc/, what stands there, what is put in its place)
FAULTS = {
    "header_checksum_not_compared": (
        "chunk",
        "store/chunk_format.cpp",
        "if (header.header_checksum != header_checksum(header))",
        "if (false)",
    ),
    "last_block_not_verified": (
        "chunk",
        "store/chunk_format.cpp",
        "for (std::size_t block = 0; block < expected.block_count; ++block)",
        "for (std::size_t block = 0; block + 1 < expected.block_count; ++block)",
    ),
    "checksums_behind_the_last_not_compared": (
        "chunk",
        "store/chunk_format.cpp",
        "identity.block_count, wanted.block_checksums.begin());",
        "kMaxBlocksPerChunk, wanted.block_checksums.begin());",
    ),
    "more_blocks_than_a_header_has": (
        "chunk",
        "store/chunk_format.cpp",
        "found.block_count <= kMaxBlocksPerChunk &&",
        "",
    ),
    "key_of_the_file_not_compared": (
        "chunk",
        "store/inspection.cpp",
        "if (identity.key != key ||",
        "if (",
    ),
    "length_of_the_file_not_compared": (
        "chunk",
        "store/inspection.cpp",
        "if (identity.file_bytes() != found.bytes)",
        "if (false)",
    ),
    "rank_with_zeros": (
        "names",
        "store/tree_names.cpp",
        "|| name.substr(1) != std::to_string(rank)",
        "",
    ),
    "chunk_in_anothers_directory": (
        "names",
        "store/tree_names.cpp",
        " || !hex.starts_with(fan_out)",
        "",
    ),
    "time_that_overflows": ("fault_spec", "io/fault_spec.cpp", " && value <= 3600e6", ""),
    "lease_of_anybody": (
        "lease",
        "store/lease.cpp",
        'text.starts_with(holder_ + " ")',
        'text.find(holder_ + " ") != std::string::npos',
    ),
}


def run(command: list[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, text=True, errors="replace", check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built() -> Path:
    """Where the targets are, as ``scripts/fuzz.sh`` builds them."""
    done = run(["scripts/fuzz.sh", "0"], timeout=600)
    if "no clang with libFuzzer" in done.stdout:
        pytest.skip("no clang with libFuzzer here (clang-14 and libclang-rt-14-dev)")
    assert done.returncode == 0, done.stdout
    return ROOT / "build" / "fuzz" / "tests" / "fuzz"


def fuzz(
    program: Path, target: str, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    corpus, seeds = folder / "corpus", HERE / "corpus" / target
    corpus.mkdir()
    # In memory where that can be had: what a crash leaves there goes with it.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="lmkv-fuzz-", dir=memory) as scratch:
        return run(
            [
                program, corpus, seeds, f"-dict={HERE / target}.dict", "-max_len=2048",
                f"-artifact_prefix={folder}/", "-timeout=10", "-print_final_stats=1", *options,
            ],
            timeout=120, env={**os.environ, "TMPDIR": scratch},
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_clean_over_its_corpus_and_for_a_second(
    target: str, built: Path, tmp_path: Path
) -> None:
    done = fuzz(built / f"fuzz_{target}", target, tmp_path, "-max_total_time=1")
    assert done.returncode == 0, done.stdout[-4000:]
    tried = int(re.findall(r"number_of_executed_units: (\d+)", done.stdout)[0])
    assert tried > 10 * len(list((HERE / "corpus" / target).iterdir()))


def outcome(built: Path, folder: Path, fault: tuple[str, str, str, str]) -> tuple[str, str]:
    """What a target with a fault in what it fuzzes says, and whether it kept the input."""
    target, name, original, changed = fault
    text = (ROOT / "csrc" / name).read_text(encoding="utf-8")
    assert text.count(original) == 1, f"{name} has no longer, or not only once: {original}"
    source = folder / Path(name).name
    source.write_text(text.replace(original, changed), encoding="utf-8")
    cache = (built.parents[1] / "CMakeCache.txt").read_text(encoding="utf-8")
    (compiler,) = re.findall(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.MULTILINE)
    program = folder / "fuzz"
    # The object with the fault is linked before the library, whose own is then not taken.
    command = [
        compiler, "-std=c++20", "-O1", "-w", "-fsanitize=fuzzer,address,undefined",
        "-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}", "-o", program,
        built / "CMakeFiles" / f"fuzz_{target}.dir" / f"fuzz_{target}.cpp.o", source,
        built / "liblmkv_fuzzed.a", "-lxxhash", "-lpthread",
    ]  # fmt: skip
    compiled = run(command)
    assert compiled.returncode == 0, compiled.stdout
    done = fuzz(program, target, folder, "-max_total_time=40", "-seed=1")
    kept = [path.name for path in folder.glob("crash-*")]
    return ("" if done.returncode == 0 else done.stdout[-3000:]), " ".join(kept)


@pytest.fixture(scope="module")
def outcomes(
    built: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Future[tuple[str, str]]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {
            fault: pool.submit(outcome, built, tmp_path_factory.mktemp(fault), FAULTS[fault])
            for fault in FAULTS
        }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found_within_seconds(
    fault: str, outcomes: Mapping[str, Future[tuple[str, str]]]
) -> None:
    said, kept = outcomes[fault].result()
    print(said)
    assert said, f"not found: {FAULTS[fault][3]!r} in {FAULTS[fault][1]}"
    assert kept, "the input that shows it was not kept"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_fails_with_the_path_of_what_it_found(
    built: Path, tmp_path: Path, outcomes: Mapping[str, Future[tuple[str, str]]]
) -> None:
    """With a target that finds something in the place of a clean one."""
    outcomes["rank_with_zeros"].result()
    (program,) = tmp_path.parent.glob("rank_with_zeros0/fuzz")
    copy = tmp_path / "lmkv"
    for name in ("scripts", "tests/fuzz"):
        shutil.copytree(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    targets = copy / "build" / "fuzz" / "tests" / "fuzz"
    targets.mkdir(parents=True)
    for target in TARGETS:
        shutil.copy(
            program if target == "names" else built / f"fuzz_{target}", targets / f"fuzz_{target}"
        )
    done = run([copy / "scripts" / "fuzz.sh", "4"], env={**os.environ, "LMKV_FUZZ_BUILT": "yes"})
    assert done.returncode == 1
    (path,) = re.findall(r"FOUND .*Test unit written to (\S+)", done.stdout)
    assert (copy / path).is_file()
    assert done.stdout.count("clean, ") == len(TARGETS) - 1
