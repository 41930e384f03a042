"""What ``lmkv doctor`` says of host memory that is to be shared: room, limits, arenas."""

import contextlib
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_arenas import SLAB_BYTES, engine_in
from typer.testing import CliRunner

from lmkv.cli import app, doctor_memory
from lmkv.cli.diagnosis import Diagnosis
from lmkv.config import Config

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_memory, "memory_limit", lambda: None)


def examine(directory: Path, size: object = "64MiB", gpu: bool = False, **more: str) -> Diagnosis:
    settings = {"host_memory": f"shared:{size}", "arena_directory": str(directory), **more}
    found = Diagnosis()
    config = Config.from_sources({"path": "/kv", **settings}, {})
    doctor_memory.examine_memory(found, config, has_gpu=gpu)
    assert found.problems == []
    return found


@contextlib.contextmanager
def mounted(folder: Path, kind: str, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", kind, "-o", options, "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_where_all_is_well_nothing_is_noted(memory_folder: Path) -> None:
    found = examine(memory_folder)
    assert found.notes == []
    assert found.facts["shared memory"].startswith(f"{memory_folder}: tmpfs, ")
    assert "memory limit" not in found.facts


def test_a_directory_that_is_not_there_is_noted(tmp_path: Path) -> None:
    (note,) = examine(tmp_path / "missing").notes
    assert "which is not there" in note
    assert "memory of its own" in note


def test_a_directory_on_a_disk_is_noted(tmp_path: Path) -> None:
    (note,) = examine(tmp_path).notes
    assert "neither tmpfs nor hugetlbfs" in note


def test_more_than_there_is_room_for_is_noted_with_what_to_do_in_a_container(
    memory_folder: Path,
) -> None:
    (note,) = examine(memory_folder, "900TiB").notes
    assert "host_memory is 900.0 TiB" in note
    assert "--shm-size" in note
    assert "--ipc=host" in note


@needs_root
def test_what_others_have_taken_is_no_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "size=64m") as folder:
        (folder / "of others").write_bytes(bytes(16 << 20))
        assert "of 64.0 MiB are free" in examine(folder, "60MiB").notes[0]
        assert "gc --memory" in examine(folder, "60MiB").notes[0]
        assert examine(folder, "40MiB").notes == []


@needs_root
def test_a_tmpfs_without_a_limit_has_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "all", "tmpfs", "size=0,nr_inodes=0") as folder:
        found = examine(folder, "900TiB")
        assert found.notes == []
        assert found.facts["shared memory"] == f"{folder}: tmpfs without a limit"


@needs_root
def test_huge_pages_are_counted(tmp_path: Path) -> None:
    with mounted(tmp_path / "huge", "hugetlbfs", "pagesize=2M") as folder:
        free = (doctor_memory.HUGE_PAGES / "hugepages-2048kB" / "free_hugepages").read_text()
        found = examine(folder, "1TiB")
        assert found.facts["shared memory"].startswith(f"{folder}: hugetlbfs, ")
        assert (int(free) << 21 >= 1 << 40) == (found.notes == [])


def test_a_containers_limit_that_is_too_low_is_noted(
    memory_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_memory, "memory_limit", lambda: 64 << 20)
    found = examine(memory_folder)
    assert found.facts["memory limit"] == "64.0 MiB (cgroup)"
    assert "Raise the limit" in found.notes[0]
    assert examine(memory_folder, "32MiB").notes == []


def test_too_little_locked_memory_is_noted_where_there_is_a_gpu(
    memory_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 8 << 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert examine(memory_folder).notes == []
    (note,) = examine(memory_folder, gpu=True).notes
    assert "8.0 MiB may be locked (RLIMIT_MEMLOCK)" in note
    limit = resource.RLIM_INFINITY
    assert examine(memory_folder, gpu=True).notes == []


def test_an_arena_is_told(memory_folder: Path, tmp_path: Path) -> None:
    engine = engine_in(memory_folder, tmp_path, slabs=512)
    found = examine(memory_folder, 512 * SLAB_BYTES)
    assert found.notes == []
    assert found.facts["arena"].endswith("0 chunks, engines: 1")
    assert examine(memory_folder, file_mode="group").facts.keys() == {"shared memory"}
    engine.close()


def test_several_are_numbered(memory_folder: Path, tmp_path: Path) -> None:
    engines = [engine_in(memory_folder, tmp_path, blocks) for blocks in (2, 4)]
    assert {"arena 1", "arena 2"} <= examine(memory_folder).facts.keys()
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(("slabs", "differs"), [(4, False), (5, True), (3, True)])
def test_an_arena_of_another_size_than_is_set_is_noted(
    memory_folder: Path, tmp_path: Path, slabs: int, differs: bool
) -> None:
    engine = engine_in(memory_folder, tmp_path, slabs=512)
    size = (508 + slabs) * SLAB_BYTES
    notes = examine(memory_folder, size + SLAB_BYTES - 1).notes
    assert any("keeps the size that it was made with" in note for note in notes) == differs
    engine.close()


def test_an_arena_of_another_version_is_noted(memory_folder: Path, tmp_path: Path) -> None:
    engine_in(memory_folder, tmp_path).close()
    (path,) = memory_folder.iterdir()
    with path.open("r+b") as file:
        file.seek(8)  # ArenaHeader::layout
        file.write(bytes([99]))
    (note,) = examine(memory_folder).notes
    assert "made by another version of lmkv (layout 99" in note
    assert f"rm {path}" in note


def test_an_arena_that_others_may_use_is_noted(memory_folder: Path, tmp_path: Path) -> None:
    engine_in(memory_folder, tmp_path).close()
    (path,) = memory_folder.iterdir()
    path.chmod(0o666)
    assert "others may use it" in examine(memory_folder).notes[0]


def test_an_arena_that_is_not_as_it_must_be_is_noted(memory_folder: Path, tmp_path: Path) -> None:
    engine_in(memory_folder, tmp_path, slabs=512).close()
    (path,) = memory_folder.iterdir()
    with path.open("r+b") as file:
        file.seek(4096 + 96)  # ArenaControl::unused[0].length
        file.write((999_999).to_bytes(4, "little"))
    (note,) = examine(memory_folder, 512 * SLAB_BYTES).notes
    assert "is not as it must be (a list's length is wrong)" in note


def doctor(*arguments: str | Path) -> dict:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    return json.loads(result.stdout)


def test_it_is_looked_at_where_the_settings_say_so(
    memory_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LMKV_PATH", raising=False)
    assert "shared memory" not in doctor(tmp_path)["facts"]
    extra = {"path": str(tmp_path), "host_memory": "shared:64MiB"}
    config = {
        "kv_connector": "LMKVConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {**extra, "arena_directory": str(memory_folder)},
    }
    assert str(memory_folder) in doctor("--config", json.dumps(config))["facts"]["shared memory"]
    monkeypatch.setenv("LMKV_HOST_MEMORY", "shared:64MiB")
    monkeypatch.setenv("LMKV_ARENA_DIRECTORY", str(memory_folder))
    assert str(memory_folder) in doctor(tmp_path)["facts"]["shared memory"]
    monkeypatch.setenv("LMKV_HOST_MEMORY", "much")
    assert "shared memory" not in doctor(tmp_path)["facts"]
