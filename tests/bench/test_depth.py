"""Depths at the disk: measured on real files, chosen by rule, kept by disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmkv.bench.depth import calibrate, least_depth
from lmkv.bench.io import MIB, Settings
from lmkv.errors import ConfigError
from lmkv.tuning import (
    Depths,
    Tuning,
    depths_of,
    load_depths,
    load_tuning,
    mount_of,
    save_depths,
    save_tuning,
    tuning_file,
)


def test_the_least_depth_that_is_about_as_fast_as_the_fastest_is_taken() -> None:
    assert least_depth({4: 1.0, 8: 2.0, 16: 2.95, 32: 3.0, 64: 2.9}) == 16
    assert least_depth({4: 3.0, 8: 3.0}) == 4
    assert least_depth({4: 1.0, 128: 9.0}) == 128


def test_every_depth_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    depths = calibrate(
        Settings(path=tmp_path),
        depths_mib=(2, 16),
        bytes_total=24 * MIB,
        rounds=2,
        each=rows.append,
    )
    assert [row["depth_mib"] for row in rows] == [2, 16]
    assert all(row["store_gbps"] > 0 and row["load_gbps"] > 0 for row in rows)
    assert {depths.load_depth, depths.store_depth} <= {2 * MIB, 16 * MIB}
    assert list(tmp_path.iterdir()) == []


def test_depths_are_kept_for_all_paths_of_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(tmp_path / "kv")
    assert load_depths(path) is None
    depths = Depths(load_depth=8 * MIB, store_depth=4 * MIB)
    save_tuning("A GPU", Tuning())
    save_depths(path, depths)
    assert load_depths(str(tmp_path / "not there" / "yet")) == depths
    assert load_depths("/proc/kv") is None, "another filesystem"
    assert load_tuning("A GPU") == Tuning()


def test_the_largest_of_several_disks_counts_and_defaults_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(tmp_path / "kv")
    assert depths_of([path, "/proc/kv"]) == Depths()
    save_depths(path, Depths(load_depth=8 * MIB, store_depth=4 * MIB))
    assert depths_of([path, "/proc/kv"]) == Depths(load_depth=8 * MIB, store_depth=4 * MIB)
    save_depths("/proc/kv", Depths(load_depth=2 * MIB, store_depth=16 * MIB))
    assert depths_of([path, "/proc/kv"]) == Depths(load_depth=8 * MIB, store_depth=16 * MIB)


def test_a_mount_point_is_found_above_what_is_not_there() -> None:
    assert mount_of("/proc/no/such/file") == "/proc"
    assert mount_of("/") == "/"


@pytest.mark.parametrize("size", [0, MIB - 1, 1 << 41, "64MiB"])
def test_depths_that_cannot_be_are_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="depth"):
        Depths(load_depth=size)


@pytest.mark.parametrize(
    "content", ["", '{"format": 1, "disks": 5}', '{"format": 1, "disks": {"/": {"load_depth": 1}}}']
)
def test_a_file_that_makes_no_sense_is_as_none(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning_file().parent.mkdir()
    tuning_file().write_text(content)
    assert load_depths("/") is None
