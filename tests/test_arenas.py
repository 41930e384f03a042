"""Arenas from outside: found by the names of their files, looked at, removed."""

import os
from pathlib import Path

import pytest

from lmkv import arenas
from lmkv._C import Engine, EngineOptions, arena_report, slab_bytes
from lmkv.arenas import ArenaName, parse_name

SLAB_BYTES = slab_bytes(4096, 4)


def engine_in(arena: Path, root: Path, blocks_per_chunk: int = 4, slabs: int = 4) -> Engine:
    """One that has its slabs there, and no KV cache that matters."""
    engine = Engine(
        EngineOptions(
            root=str(root), namespace=bytes(32), rank=0, segments=[(0, 4096, 4096)],
            block_count=8, block_tokens=16, blocks_per_chunk=blocks_per_chunk,
            host_memory=slabs * slab_bytes(4096, blocks_per_chunk), arena_directory=str(arena),
        )
    )  # fmt: skip
    assert engine.info()["arena_error"] == ""
    return engine


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("lmkv-1000-33558528.arena", ArenaName(1000, 33558528, "private")),
        ("lmkv-0-69632.arena", ArenaName(0, 69632, "private")),
        ("lmkv-g27-69632.arena", ArenaName(27, 69632, "group")),
        ("lmkv-1000-33558528.arena.bak", None),
        ("lmkv-1000-.arena", None),
        ("lmkv--69632.arena", None),
        ("lmkv-01-69632.arena", None),
        ("lmkv-1-069632.arena", None),
        ("lmkv-x1-69632.arena", None),
        ("lmkv-1-69632.arena\n", None),
        ("lmkv-1-99999999999999999999.arena", None),
        ("sem.lmkv-1-69632.arena", None),
    ],
)
def test_a_name_says_whose_it_is_and_how_large_its_slabs_are(
    name: str, parsed: ArenaName | None
) -> None:
    assert parse_name(name) == parsed


def test_the_name_is_that_of_the_core(memory_folder: Path, tmp_path: Path) -> None:
    engine = engine_in(memory_folder, tmp_path)
    assert [file.name for file in memory_folder.iterdir()] == [
        f"lmkv-{os.geteuid()}-{SLAB_BYTES}.arena"
    ]
    engine.close()


def test_every_arena_of_this_user_is_found(memory_folder: Path, tmp_path: Path) -> None:
    engines = [engine_in(memory_folder, tmp_path, blocks) for blocks in (2, 4)]
    (memory_folder / f"lmkv-{os.geteuid() + 1}-{SLAB_BYTES}.arena").touch()
    (memory_folder / f"lmkv-g{os.getegid() + 1}-{SLAB_BYTES}.arena").touch()
    (memory_folder / "sem.something").touch()
    found = arenas.find(str(memory_folder))
    assert [one.name.slab_bytes for one in found] == sorted(slab_bytes(4096, n) for n in (2, 4))
    assert [(one.engines, one.dead, one.error) for one in found] == [(1, 0, "")] * 2
    for engine in engines:
        engine.close()


def test_where_there_is_no_directory_there_is_none(tmp_path: Path) -> None:
    assert arenas.find(str(tmp_path / "missing")) == []
    assert arenas.find(str(tmp_path)) == []


def test_what_cannot_be_read_says_why(memory_folder: Path) -> None:
    path = memory_folder / f"lmkv-g{os.getegid()}-{SLAB_BYTES}.arena"
    path.write_bytes(bytes(4 << 20))
    path.chmod(0o660)
    (found,) = arenas.find(str(memory_folder))
    assert (found.path, found.report, found.engines) == (str(path), None, 0)
    assert found.error == "no arena"
    assert arenas.remove(found).error == "no arena"
    assert path.exists()


def test_what_nobody_uses_is_taken_away(memory_folder: Path, tmp_path: Path) -> None:
    engine_in(memory_folder, tmp_path).close()
    (found,) = arenas.find(str(memory_folder))
    assert found.engines == 0
    would = arenas.remove(found, dry_run=True)
    assert would.error == ""
    assert arena_report(str(memory_folder), SLAB_BYTES)
    assert arenas.remove(found) == would
    assert would.bytes > 0
    assert arena_report(str(memory_folder), SLAB_BYTES) is None
    assert "is not there" in arenas.remove(found).error


def test_what_engines_use_stays_as_it_is(memory_folder: Path, tmp_path: Path) -> None:
    engine = engine_in(memory_folder, tmp_path)
    (found,) = arenas.find(str(memory_folder))
    for dry_run in (False, True):
        done = arenas.remove(found, dry_run=dry_run)
        assert done.bytes == 0
        assert done.error == f"engines use it (process {os.getpid()}): end them first"
    assert arenas.find(str(memory_folder))[0].report is not None
    engine.close()
