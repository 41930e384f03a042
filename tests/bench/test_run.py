"""``benchmarks/run.py`` and ``report.py``: one result for each experiment, and a page of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from programs import run as run_program

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ("lookup", "transfer")  # those that take seconds


def run(
    path: Path, *words: str, only: tuple[str, ...] = EXPERIMENTS, runner: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return run_program(
        runner / "benchmarks" / "run.py", "--path", path / "disk", "--results", path / "results",
        "--only", *only, *words,
    )  # fmt: skip


def report(folder: Path) -> None:
    results, page = folder / "results", folder / "page" / "benchmarks.md"
    command = [sys.executable, ROOT / "benchmarks" / "report.py", "--results", results]
    subprocess.run([*command, "--page", page], check=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with nothing but what is committed."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=ignored)
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "benchmarks"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def all_experiments() -> list[str]:
    from experiments import EXPERIMENTS

    return [experiment.name for experiment in EXPERIMENTS]


def measured(folder: Path, name: str) -> dict[str, object]:
    return dict(json.loads((folder / "results" / f"{name}.json").read_text()))


@pytest.mark.slow
def test_what_was_measured_says_how_and_is_not_measured_again(
    checkout: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, runner=checkout)
    assert done.returncode == 0, done.stderr
    first = {name: measured(tmp_path, name) for name in EXPERIMENTS}
    lookup, transfer = first.values()
    assert lookup["command"] == "lmkv bench lookup --path DIR --json FILE"
    assert transfer["command"] == "lmkv bench transfer --rounds 5 --json FILE"
    for result in (lookup, transfer):
        assert result["seconds"] > 0  # type: ignore[operator]
        assert result["machine"]["processor"]  # type: ignore[index]
        assert result["machine"]["filesystem"]  # type: ignore[index]
        assert len(result["versions"]["commit"]) == 12  # type: ignore[index, arg-type]
        assert str(tmp_path) not in json.dumps(result)
    assert lookup["result"]["known"]  # type: ignore[index]
    assert list((tmp_path / "disk").iterdir()) == []
    assert {file.name for file in (tmp_path / "results").iterdir()} == {
        "lookup.json", "lookup.log", "transfer.json", "transfer.log",
    }  # fmt: skip

    report(tmp_path)
    page = (tmp_path / "page" / "benchmarks.md").read_text()
    assert page.count("Not measured") == len(all_experiments()) - len(EXPERIMENTS)
    for text in ("512 chunks | p50", "| 4 KiB |", lookup["command"], transfer["command"]):
        assert str(text) in page
    assert f"commit {lookup['versions']['commit']}" in page  # type: ignore[index]
    charts = tmp_path / "page" / "assets" / "benchmarks"
    assert {chart.name for chart in charts.iterdir()} == {"derived.svg", "transfer.svg"}
    drawn = (charts / "transfer.svg").read_bytes()
    assert b"one copy" in drawn
    report(tmp_path)
    assert (charts / "transfer.svg").read_bytes() == drawn

    # One is there; the other was cut off.
    (tmp_path / "results" / "transfer.json").write_text('{"experiment": "tra')
    again = run(tmp_path, runner=checkout)
    assert "lookup: known" in again.stderr
    assert "transfer: measured" in again.stderr
    assert measured(tmp_path, "lookup") == first["lookup"]
    assert measured(tmp_path, "transfer")["begun"] > transfer["begun"]  # type: ignore[operator]

    # More of the same is another measurement.
    full = run(tmp_path, "--full", runner=checkout)
    assert "lookup: known" in full.stderr  # it has no more
    assert "transfer: measured" in full.stderr


def test_one_that_fails_is_named_and_the_next_is_measured(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to("/proc")  # where nobody can make a folder
    done = run(tmp_path, only=("io", "transfer"))
    assert done.returncode == 1
    assert "io: failed: exit status" in done.stderr
    assert "error: failed: io" in done.stderr
    assert "transfer: measured" in done.stderr  # which needs no disk
    assert "exit status" in str(measured(tmp_path, "io")["failed"])
    assert (tmp_path / "results" / "io.log").stat().st_size > 0


def test_what_is_measured_ends_with_who_measures(tmp_path: Path) -> None:
    runner = ROOT / "benchmarks" / "run.py"
    where = ["--path", tmp_path / "disk", "--results", tmp_path / "results"]
    process = subprocess.Popen(
        [sys.executable, runner, *where, "--only", "transfer"], stderr=subprocess.DEVNULL
    )
    experiment = child_of(process.pid, "transfer")
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not experiment.is_running()
    assert not (tmp_path / "results" / "transfer.json").exists()


def child_of(pid: int, word: str) -> psutil.Process:
    """The one whose command has that word, as soon as it is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in child.cmdline():
                    return child
        time.sleep(0.02)
    raise AssertionError(f"no {word} was started")


def test_one_page_is_about_one_machine_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from report import page

    one = {"machine": {"cores": 2}, "begun": "2026-11-29", "versions": {}}
    with pytest.raises(ValueError, match="of 2 different machine"):
        page({"io": one, "lookup": {**one, "machine": {"cores": 4}}})
    with pytest.raises(ValueError, match="of 2 different versions"):
        page({"io": one, "lookup": {**one, "versions": {"lmkv": "0.2"}}})
