"""``lmkv bench memory``: few chunks, in an arena that is really shared by processes."""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import LMKV, run

from lmkv._C import remove_arena
from lmkv.bench import arena
from lmkv.bench.arena_chunks import KIB, Chunks
from lmkv.bench.arena_loads import measure_loads
from lmkv.bench.memory import HostMemory

SMALL = Chunks(layers=3, page_bytes=4 * KIB, blocks=2, count=4)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="lmkv-test-") as name:
        yield Path(name)


def test_a_prompt_has_at_least_the_bytes_that_are_asked_for() -> None:
    prompt = Chunks.of_a_prompt(256 * arena.MIB)
    assert 256 * arena.MIB <= prompt.bytes_total < 268 * arena.MIB
    assert prompt.bytes_total / prompt.count == 11.25 * arena.MIB
    assert len(set(prompt.keys)) == prompt.count


def test_it_measures_every_number_of_processes_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena, "MEMORY", folder)
    seen = {}
    result = arena.measure(
        moved_bytes=12 * arena.MIB, rounds=2, processes=(1, 3), each=seen.__setitem__
    )
    assert {int(count): row for count, row in result["by_processes"].items()} == seen
    assert list(seen) == [1, 3]
    for row in seen.values():
        for key in ("scatter_gbps", "memcpy_gbps", "ratio"):
            low, high = row[f"{key}_range"]
            assert 0 < low <= row[key] <= high
        assert row["first_scatter_gbps"] > 0
    assert result["ratio"] == min(row["ratio"] for row in seen.values())
    assert all(result["attach_ms"][name] > 0 for name in ("arena", "own", "view"))
    assert all(taken > 0 for taken in result["lookup_ns_per_key"].values())
    assert 0 < result["lookup_512_us"]["p50"] <= result["lookup_512_us"]["p99"]
    assert list(folder.iterdir()) == []


def test_an_engine_loads_the_bytes_that_another_stored(folder: Path) -> None:
    SMALL.store(folder)
    blocks = SMALL.count * SMALL.blocks
    cache = HostMemory(2 * SMALL.bytes_total)
    engine = SMALL.engine(folder, cache)
    layers = SMALL.bytes_total // SMALL.layers
    before = ctypes.string_at(cache.address, cache.bytes_total)
    for begin in (0, blocks):
        engine.load(SMALL.load_into(range(begin, begin + blocks)))
        assert engine.drain(10)
        (done,) = engine.poll()
        assert done.memory_chunks == list(range(SMALL.count))
    after = ctypes.string_at(cache.address, cache.bytes_total)
    for layer in range(SMALL.layers):
        at = 2 * layer * layers
        assert after[at : at + layers] == after[at + layers : at + 2 * layers]
        assert after[at : at + layers] != before[at : at + layers]


def test_what_is_not_in_memory_is_no_measurement(folder: Path) -> None:
    SMALL.store(folder)
    remove_arena(str(folder), SMALL.slab_bytes)
    with pytest.raises(RuntimeError, match="a chunk was not in memory"):
        measure_loads(SMALL, folder, 2, 1)


def test_the_command_prints_json_and_only_that() -> None:
    done = run(*LMKV, "memory", "--megabytes", "1", "--rounds", "1", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["by_processes"]) == ["1", "2", "4"]
    assert (result["rounds"], result["target"]) == (1, 0.9)
    assert "Scatter GB/s" in done.stderr


def test_too_small_a_filesystem_is_named() -> None:
    done = run(*LMKV, "memory", "--megabytes", f"{1 << 30}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: /dev/shm has room for")
    assert "are needed" in done.stderr
