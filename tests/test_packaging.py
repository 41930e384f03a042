"""What the sdist and the wheel hold, and that the wheel works where nothing else is."""

import importlib.metadata
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMPORT_BUDGET_S = 0.2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_sdist_holds_what_the_core_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tree = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert tree <= names
    assert {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    assert not [name for name in names if name.endswith(".so")]


def test_wheel_holds_core_stub_marker_and_document(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in ("lmkv/_C.pyi", "lmkv/py.typed", "lmkv/demo/documents/guide.md"):
        assert wanted in names
    assert len([n for n in names if n.startswith("lmkv/_C.") and n.endswith(".so")]) == 1
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "docs/"))]


def test_core_links_neither_torch_nor_cudart_nor_libpython(bare_python: Path) -> None:
    core = run(bare_python, "-c", "import lmkv._C; print(lmkv._C.__file__)").strip()
    linked = run("ldd", core)
    names = [line.split()[0] for line in linked.splitlines()]  # what follows are addresses
    for library in ("torch", "libc10", "cudart", "libcuda", "libpython"):
        assert not [name for name in names if library in name]
    assert "not found" not in linked


def test_import_takes_no_torch_and_little_time(bare_python: Path) -> None:
    script = "import time; t = time.perf_counter(); import lmkv; print(time.perf_counter() - t)"
    run(bare_python, "-c", "import lmkv")  # byte-compiles
    seconds = min(float(run(bare_python, "-c", script)) for _ in range(3))
    assert seconds < IMPORT_BUDGET_S


def test_doctor_of_a_bare_environment_reports_the_gpu_absent_not_broken(
    bare_python: Path, tmp_path: Path
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("hardware: this machine has an NVIDIA GPU, so it is not absent")
    found = json.loads(run(bare_python.parent / "lmkv", "doctor", tmp_path, "--json"))
    assert found["usable"] is True
    with_cuda = found["facts"]["CUDA"] != "not built in"
    assert found["facts"]["GPU"].startswith("absent: " if with_cuda else "not built in")
    assert not [note for note in found["notes"] if "NVIDIA" in note]
    assert found["facts"]["vLLM"] == "not installed"


def test_console_script_prints_its_commands(bare_python: Path) -> None:
    text = run(bare_python.parent / "lmkv", "--help")
    assert "doctor" in text
    assert "demo" in text


def test_vllm_finds_the_connector_by_entry_point() -> None:
    (entry,) = (
        point
        for point in importlib.metadata.entry_points(group="vllm.general_plugins")
        if point.name == "lmkv"
    )
    assert entry.value == "lmkv.vllm.plugin:register"
    assert callable(entry.load())
