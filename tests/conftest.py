"""One build of the sdist and the wheel, by the script that releases them, for all tests of them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for what tests of several folders share

Run = Callable[..., str]


@pytest.fixture(scope="session")
def run_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command, and returns its output, where nothing leads to this checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(*command: str | Path, cwd: Path = folder, **variables: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LMKV_"))}
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, env=environment | variables,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an image's build gets of the clone: all but what .dockerignore keeps out."""
    from docker.utils import exclude_paths

    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in patterns if line and not line.startswith("#")]
    target = tmp_path_factory.mktemp("context")
    for name in exclude_paths(str(ROOT), patterns):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="session")
def dist(context: Path, run_elsewhere: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `scripts/wheel.sh` makes of an image's context, without .venv, as in that build.

    The wheel is built from the sdist, so that what the sdist lacks is noticed.
    """
    copy = shutil.copytree(context, tmp_path_factory.mktemp("tree") / "lmkv")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # its python3 is ours
    run_elsewhere(copy / "scripts" / "wheel.sh", cwd=copy, PATH=path)
    return copy / "dist"


@pytest.fixture(scope="session")
def sdist(dist: Path) -> Path:
    (path,) = dist.glob("lmkv-*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("lmkv-*.whl")
    return path


@pytest.fixture(scope="session")
def bare_python(wheel: Path, run_elsewhere: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and what it asks for, only."""
    environment = tmp_path_factory.mktemp("bare") / "venv"
    run_elsewhere(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run_elsewhere(python, "-m", "pip", "install", wheel)
    return python


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A directory in memory, which goes with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="lmkv-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)
