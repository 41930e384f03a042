"""``lmkv bench transfer`` on the host device: the bytes, the numbers, and what is made of them."""

from __future__ import annotations

import ctypes
import json
from itertools import chain
from typing import Any

import pytest
from programs import LMKV, run

from lmkv import ConfigError
from lmkv._C import TransferBench, TransferOptions
from lmkv.bench.memory import HostMemory
from lmkv.bench.transfer import (
    FRAGMENTS,
    KIB,
    MIB,
    MODES,
    Case,
    fewest_thread_blocks,
    measure,
    tuning_of,
)
from lmkv.tuning import Tuning, load_tuning, save_tuning, tuning_file

SMALL = {"fragments": (4 * KIB, 16 * KIB), "moved_bytes": 4 * MIB, "rounds": 2}


def test_a_case_moves_what_it_says() -> None:
    for fragment in FRAGMENTS:
        case = Case.of(fragment, 256 * MIB)
        chunks = case.chunks(1)
        ids = [block for chunk in chunks for block in chunk]
        assert len(set(ids)) == len(ids) == case.blocks // 2
        assert max(ids) < case.blocks
        assert case.bytes_moved == len(ids) * case.layers * fragment
        assert 200 * MIB <= case.bytes_moved <= 300 * MIB


def test_a_gather_and_a_scatter_move_the_bytes_of_the_blocks() -> None:
    case = Case(fragment=5000, layers=3, blocks=64)
    memory = HostMemory(case.bytes_total)
    bench = TransferBench(
        device="host", segments=case.segments(memory.address), host_bytes=case.bytes_moved
    )
    chunks = case.chunks(3)
    assert bench.run("gather", chunks) > 0
    before = ctypes.string_at(memory.address, case.bytes_total)
    at = bench.address
    for block in chain(*chunks):
        for layer in range(case.layers):
            begin = (layer * case.blocks + block) * case.fragment
            assert ctypes.string_at(at, case.fragment) == before[begin : begin + case.fragment]
            at += case.fragment
    mirrored = [[case.blocks - 1 - block for block in chunk] for chunk in chunks]
    bench.run("scatter", mirrored)
    after = ctypes.string_at(memory.address, case.bytes_total)
    pairs = zip(chain(*chunks), chain(*mirrored), strict=True)
    for source, target in pairs:
        for layer in range(case.layers):
            a, b = ((layer * case.blocks + block) * case.fragment for block in (source, target))
            assert after[b : b + case.fragment] == before[a : a + case.fragment]


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="larger than the host memory"):
        TransferBench(device="host", segments=[(4096, 64, 64)], host_bytes=64).run(
            "gather", [[0] * 100]
        )
    with pytest.raises(ConfigError, match="gather, scatter"):
        TransferBench(device="host", segments=[(4096, 64, 64)], host_bytes=64).run("up", [])
    with pytest.raises(ConfigError, match="kernel_staged, kernel_mapped"):
        TransferOptions(gather_below="copy_engine")
    with pytest.raises(ConfigError, match="thread_blocks"):
        TransferOptions(thread_blocks=0)


def test_the_headline_is_that_of_the_worst_fragment() -> None:
    fragments, moved, rounds = SMALL["fragments"], SMALL["moved_bytes"], SMALL["rounds"]
    memory = HostMemory(2 * moved)
    seen: list[dict[str, Any]] = []
    result = measure(
        memory, "auto", fragments=fragments, moved_bytes=moved, rounds=rounds, each=seen.append
    )
    assert seen == result["by_fragment"]
    counted = seen[1]  # 4 KiB is not
    for direction in ("gather", "scatter"):
        assert result[f"{direction}_ratio"] == counted[f"{direction}_ratio"] > 0
        low, high = counted[f"{direction}_gbps_range"]
        assert low <= result[f"{direction}_gbps"] <= high
    assert result["device"] == "host"
    assert result["memcpy_gbps"] > 0


def test_the_command_prints_json_and_only_that() -> None:
    done = run(
        *LMKV, "transfer", "--device", "host", "--megabytes", "8", "--rounds", "1", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"device", "gather_gbps", "scatter_gbps", "memcpy_gbps", "gather_ratio"} <= set(result)
    assert [row["fragment_bytes"] for row in result["by_fragment"]] == list(FRAGMENTS)
    for device in ("cuda:99", "tpu", "cuda:x"):
        wrong = run(*LMKV, "transfer", "--device", device)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("error: ")
        assert device in wrong.stderr


# ---- Calibration


def rows(rates: dict[int, float]) -> list[dict[str, Any]]:
    return [
        {"fragment_bytes": fragment, "gather_gbps": rate, "scatter_gbps": rate}
        for fragment, rate in rates.items()
    ]


def test_the_copy_engine_is_taken_from_where_it_keeps_up() -> None:
    measured = {
        "copy_engine": rows({4096: 2, 16384: 9, 65536: 24, MIB: 25}),
        "kernel_staged": rows({4096: 20, 16384: 22, 65536: 24.5, MIB: 25}),
        "kernel_mapped": rows({4096: 15, 16384: 18, 65536: 20, MIB: 21}),
    }
    assert tuning_of(measured) == Tuning(
        gather_copy_engine_from=65536, gather_below="kernel_staged",
        scatter_copy_engine_from=65536, scatter_below="kernel_staged",
    )  # fmt: skip


def test_a_copy_engine_that_never_keeps_up_is_not_taken() -> None:
    measured = {
        "copy_engine": rows({4096: 2, MIB: 10}),
        "kernel_staged": rows({4096: 15, MIB: 21}),
        "kernel_mapped": rows({4096: 20, MIB: 25}),
    }
    found = tuning_of(measured)
    assert found.gather_copy_engine_from > MIB
    assert found.gather_below == "kernel_mapped"


def test_a_copy_engine_that_always_keeps_up_is_always_taken() -> None:
    measured = {mode: rows({4096: 25, MIB: 25}) for mode in MODES}
    assert tuning_of(measured).scatter_copy_engine_from == 4096


def test_one_dip_of_a_kernel_does_not_move_the_threshold_down() -> None:
    measured = {
        "copy_engine": rows({4096: 5, 16384: 10, 65536: 25}),
        "kernel_staged": rows({4096: 4, 16384: 22, 65536: 25}),
        "kernel_mapped": rows({4096: 4, 16384: 20, 65536: 25}),
    }
    assert tuning_of(measured).gather_copy_engine_from == 65536


def test_as_few_thread_blocks_are_taken_as_do() -> None:
    assert fewest_thread_blocks({1: 12.0, 2: 23.0, 4: 24.5, 8: 25.0, 16: 25.1, 32: 24.0}) == 4
    assert fewest_thread_blocks({1: 25.0, 2: 25.0}) == 1


def test_without_a_home_there_is_no_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert load_tuning("A") is None


def test_a_tuning_is_kept_by_gpu(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_tuning("A") is None
    first, second = Tuning(gather_copy_engine_from=1), Tuning(scatter_below="kernel_mapped")
    save_tuning("A", first)
    save_tuning("B", second)
    assert (load_tuning("A"), load_tuning("B")) == (first, second)
    assert [path.name for path in tuning_file().parent.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "gpus": {}}',
        '{"format": 1, "gpus": {"A": {"gather_below": "x"}}}',
        '{"format": 1, "gpus": {"A": {"unknown": 1}}}',
        '{"format": 1, "gpus": {"A": 5}}',
    ],
)
def test_a_file_that_makes_no_sense_is_as_none(
    content: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning_file().parent.mkdir()
    tuning_file().write_text(content)
    assert load_tuning("A") is None
