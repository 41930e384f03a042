"""`make wheel`: one file that runs on other machines, with all of lmkv inside."""

import importlib.util
import json
import platform
import re
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 5_000_000
# Ubuntu 22.04 (vLLM's images), Debian 12 and RHEL 9 have it.
OLDEST_GLIBC = (2, 34)
SYSTEM_LIBRARIES = {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux-x86-64.so.2"}

Run = Callable[..., str]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension module of the wheel, as the wheel holds it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (path,) = folder.rglob("*.so")
    return path


@pytest.fixture(scope="session")
def beside_vllm(wheel: Path, run_elsewhere: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel of its own, and else what this one has.

    A .pth file adds a folder whose own .pth files are not read: our editable lmkv is not seen.
    """
    pytest.importorskip("vllm", reason="vLLM is not installed")
    environment = tmp_path_factory.mktemp("beside") / "venv"
    run_elsewhere(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run_elsewhere(python, "-m", "pip", "install", wheel)
    where = run_elsewhere(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))")
    ours = sysconfig.get_path("purelib")
    (Path(where.strip()) / "vllm_of_the_tests.pth").write_text(f"{ours}\n")
    return python


def glibc(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def test_tag_is_of_an_old_glibc_and_auditwheel_agrees(wheel: Path, run_elsewhere: Run) -> None:
    tag = wheel.stem.rpartition("-")[2]
    assert re.fullmatch(r"manylinux_2_\d+_(x86_64|aarch64)", tag)
    # The headers of a newer one than Debian 12's bring symbols that only it has.
    built_with = glibc(platform.libc_ver()[1])
    assert glibc(tag) <= (OLDEST_GLIBC if built_with <= (2, 36) else built_with)
    shown = run_elsewhere(Path(sys.executable).parent / "auditwheel", "show", wheel)
    assert f'is consistent with the following platform tag: "{tag}"' in " ".join(shown.split())


def test_core_needs_libraries_that_every_system_has_and_shows_only_its_init(
    core: Path, run_elsewhere: Run
) -> None:
    dynamic = run_elsewhere("readelf", "--dynamic", "--wide", core)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert "libc.so.6" in needed
    assert needed <= SYSTEM_LIBRARIES
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    defined = run_elsewhere("nm", "--dynamic", "--defined-only", "--format=posix", core)
    assert [line.split()[0] for line in defined.splitlines()] == ["PyInit__C"]


def test_wheel_is_small_stripped_and_grafts_nothing(
    wheel: Path, core: Path, run_elsewhere: Run
) -> None:
    assert wheel.stat().st_size < MAX_BYTES
    assert ".debug_info" not in run_elsewhere("readelf", "--sections", "--wide", core)
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if ".so" in name] == [f"lmkv/{core.name}"]


def test_wheel_names_the_licences_of_what_is_linked_in(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/licenses/NOTICE"))
        notice = archive.read(name).decode()
    for library in ("liburing", "xxHash", "pybind11", "libstdc++", "CUDA Runtime"):
        assert re.search(
            rf"^.*{re.escape(library)}.*\nCopyright .+\nUsed under", notice, re.MULTILINE
        )


def test_core_has_machine_code_for_each_gpu_and_ptx_for_later_ones(
    core: Path, bare_python: Path, run_elsewhere: Run
) -> None:
    script = "from lmkv._C import build_info as b; print(b().cuda, '|', b().cuda_architectures)"
    version, _, architectures = (
        part.strip() for part in run_elsewhere(bare_python, "-c", script).partition("|")
    )
    if shutil.which("nvcc") is None:
        assert (version, architectures) == ("", "")
        return
    wanted = ["80", "86", "89", "90"]
    if tuple(int(number) for number in version.split(".")[:2]) >= (12, 8):
        wanted += ["100", "120"]
    assert architectures.split() == wanted
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump to look into the core with")
    machine_code = run_elsewhere(cuobjdump, "--list-elf", core)
    assert re.findall(r"\.sm_(\d+)\.cubin", machine_code) == wanted
    ptx = run_elsewhere(cuobjdump, "--list-ptx", core)
    assert re.findall(r"\.sm_(\d+)\.ptx", ptx) == wanted[-1:]


def find_cuobjdump() -> str | None:
    """NVIDIA's, of the toolkit or the one that Triton brings."""
    places = [Path("/usr/local/cuda/bin")]
    if triton := importlib.util.find_spec("triton"):
        places += [Path(p) / "backends/nvidia/bin" for p in triton.submodule_search_locations or ()]
    paths = (shutil.which("cuobjdump", path=place) for place in (None, *map(str, places)))
    return next((path for path in paths if path), None)


def test_what_is_installed_is_the_wheel_and_not_this_checkout(
    bare_python: Path, run_elsewhere: Run
) -> None:
    script = "import lmkv, lmkv._C, sys; print(lmkv.__file__, lmkv._C.__file__, *sys.path)"
    package, core, *path = run_elsewhere(bare_python, "-c", script).split()
    environment = bare_python.parent.parent
    assert Path(package).is_relative_to(environment)
    assert Path(core).is_relative_to(environment)
    assert str(ROOT) not in path


def test_command_prints_its_version_and_doctor_finds_io_uring_built_in(
    wheel: Path, bare_python: Path, run_elsewhere: Run, tmp_path: Path
) -> None:
    command = bare_python.parent / "lmkv"
    assert run_elsewhere(command, "--version") == f"lmkv {wheel.name.split('-')[1]}\n"
    assert "lmkv can work here." in run_elsewhere(command, "doctor", tmp_path)
    facts = json.loads(run_elsewhere(command, "doctor", tmp_path, "--json"))["facts"]
    assert re.match(r"\d+\.\d+", facts["liburing"])
    assert re.match(r"\d+\.\d+", facts["xxhash"])


def test_chunks_are_stored_and_loaded_byte_for_byte(
    bare_python: Path, run_elsewhere: Run, tmp_path: Path
) -> None:
    root = tmp_path / "kv"
    script = ROOT / "tests" / "store_and_load.py"
    said = json.loads(run_elsewhere(bare_python, "-P", script, root))
    doctor = json.loads(run_elsewhere(bare_python.parent / "lmkv", "doctor", root, "--json"))
    assert Path(said.pop("core")).is_relative_to(bare_python.parent.parent)
    assert doctor["facts"]["I/O engine"].startswith(said.pop("io_engine"))
    assert said == {
        "store_errors": ["", ""],
        "load_errors": [""],
        "found": 1,
        "equal": True,
        "others_untouched": True,
    }
    assert len(list(root.rglob("*.kv"))) == 1


@pytest.mark.parametrize("order", ["torch, lmkv._C", "lmkv._C, torch"])
def test_core_and_torch_live_in_one_process_with_a_cpp_library_each(
    beside_vllm: Path, run_elsewhere: Run, order: str
) -> None:
    script = (
        f"import {order}\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        lmkv._C.probe_root('/tmp', io_engine='nonsense')\n"
        "    except lmkv._C.ConfigError as error:\n"
        "        print('lmkv:', error)\n"
        "    try:\n"
        "        torch.ones(2) @ torch.ones(3)\n"
        "    except RuntimeError as error:\n"
        "        print('torch:', error)\n"
    )
    lines = run_elsewhere(beside_vllm, "-c", script).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["lmkv", "torch"] * 2


@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_demo_runs_from_the_wheel(beside_vllm: Path, run_elsewhere: Run, tmp_path: Path) -> None:
    """From nothing: the model is prepared too. The engines find the wheel's lmkv and no other."""
    script = (
        "import lmkv, sys, importlib.metadata as m; "
        "print(lmkv.__file__, m.distribution('lmkv').locate_file(''), *sys.path)"
    )
    environment = beside_vllm.parent.parent
    package, metadata, *path = run_elsewhere(beside_vllm, "-c", script).split()
    assert Path(package).is_relative_to(environment)
    assert Path(metadata).is_relative_to(environment)
    assert str(ROOT) not in path

    command = [str(beside_vllm.parent / "lmkv"), "demo", "--headless"]
    command += ["--engines", "lmkv-a,lmkv-b", "--json", "out.json"]
    output = run_elsewhere(*command, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    print(output)
    results = json.loads((tmp_path / "out.json").read_text())
    loaded = {engine["name"]: engine["tokens_loaded"] for engine in results["engines"]}
    assert loaded.keys() == {"lmkv-a", "lmkv-b"}
    assert loaded["lmkv-a"] == 0
    assert loaded["lmkv-b"] > 2000
    assert results["answers_equal"] is True
