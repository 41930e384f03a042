"""``benchmarks/storage_layers.py``: what a layer loads is what it stored; briefly."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import BENCHMARKS, result_of, run

SMALL = ("--documents", "2", "--tokens", "512", "--token-bytes", "512")  # two chunks of 128 KiB
TIMES = ("store", "disk", "load")


def test_lmkv_stores_and_loads_the_same_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    result = result_of("storage_layers.py", tmp_path, *SMALL, "--layers", "lmkv_slabs")
    assert result["bytes"] == 512 * 512
    assert result["repetitions"] == len(result["documents"]) == 2
    for name, one in result["layers"].items():
        assert one["bytes"] >= 2 * (4096 + (128 << 10)), name
        for time in TIMES:
            low, high = one[f"{time}_ratio_range"]
            assert 0 < low <= one[f"{time}_ratio"] <= high
            assert one[f"{time}_ms"] > 0
    assert all(result["layers"]["lmkv"][f"{time}_ratio"] == 1 for time in TIMES)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_vllm_s_fs_tier_runs_without_an_engine(tmp_path: Path) -> None:
    layers = ("vllm_fs", "vllm_fs_blocks")
    result = result_of("storage_layers.py", tmp_path, *SMALL, "--layers", *layers)
    assert list(result["layers"]) == ["lmkv", *layers]
    for name in layers:
        assert result["layers"][name]["bytes"] >= 512 * 512
        assert result["layers"][name]["load_ms"] > 0
    assert not list(Path("/dev/shm").glob("vllm_offload_lmkv-layers-*"))


def test_a_layer_that_does_not_run_says_why_and_loads_of_other_bytes_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import layer_systems
    import numpy as np
    from layer_classes import Size

    class Forgetful:
        def fill(self, document: object) -> None: ...
        def store(self, name: str) -> None: ...
        def load(self, name: str) -> None: ...
        def loaded(self) -> list[object]:
            return [np.zeros(512 * 512, np.uint8)]

    def fails(*_: object) -> None:
        raise OSError("no such device\nor address")

    kinds = {
        "whole": layer_systems.LayerKind("", "", lambda *_: Forgetful()),
        "fails": layer_systems.LayerKind("", "", fails),
    }
    monkeypatch.setattr(layer_systems, "LAYERS", kinds)
    process = layer_systems.Process(["whole", "fails"], tmp_path, Size(512, 512))
    assert process.reasons == {"fails": "OSError: no such device"}
    process.store("whole", "a")
    with pytest.raises(RuntimeError, match="not what was stored"):
        process.load("whole", "a")


def test_a_document_is_of_whole_chunks(tmp_path: Path) -> None:
    done = run(BENCHMARKS / "storage_layers.py", "--path", tmp_path, "--tokens", "300")
    assert done.returncode == 2
    assert "no multiple of 256" in done.stderr
