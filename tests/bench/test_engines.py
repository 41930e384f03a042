"""Engines of a benchmark that have started end if the next one does not; none is real here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from programs import BENCHMARKS

STARTS = {
    "peers": lambda module, path: module.Pair("lmkv", path, 128),
    "workloads": lambda module, path: module.Pair(path, module.Size()),
    "ttft": lambda module, path: module.Bench(path, 256),
    "break_even": lambda module, path: module.measure(path, [64], 1),
}


@pytest.mark.parametrize(
    ("name", "fails_at"),
    [
        *((name, "__init__") for name in STARTS),
        # A pair of peers is waited for when it is there.
        *((name, "wait_until_ready") for name in STARTS if name != "peers"),
    ],
)
def test_the_first_engine_ends_if_the_second_does_not_start(
    name: str, fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module(name)
    there: list[Any] = []
    begun = 0

    class Engine:
        def __init__(self, *_: Any, **__: Any) -> None:
            nonlocal begun
            begun += 1
            self.number = begun
            if fails_at == "__init__" and begun == 2:
                raise OSError("no second one")
            there.append(self)

        def wait_until_ready(self) -> None:
            if self.number == 2:
                raise OSError("no second one")

        def ttft(self, _: list[int]) -> float:
            return 1.0

        def close(self) -> None:
            there.remove(self)

    monkeypatch.setattr(module, "TtftEngine", Engine)
    with pytest.raises(OSError, match="no second one"):
        STARTS[name](module, tmp_path)
    assert begun == 2
    assert there == []
