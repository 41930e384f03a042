"""Helpers for the demo's tests."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# For the helpers that lie beside the tests (pytest imports test files by path).
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that is gone after the test: pytest keeps its own, and models are large."""
    with tempfile.TemporaryDirectory(prefix="lmkv-test-") as folder:
        yield Path(folder)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(condition, within_s)`: fails unless the condition becomes true in time."""

    def wait(condition: Callable[[], bool], within_s: float = 10.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s} s"
            time.sleep(0.05)

    return wait
