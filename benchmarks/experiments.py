"""What ``run.py`` measures: the command of each experiment, and how much of it is done.

A quick run of all is to take less than 25 minutes on two cores, and has at least five repetitions
of whatever it reports a median of: it is made quick by smaller documents, not by fewer.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Experiment:
    """A command that takes ``--json FILE`` and, unless it needs no disk, ``--path DIR``."""

    name: str
    about: str
    program: tuple[str, ...]
    quick: tuple[str, ...] = ()  # further words of a quick run
    full: tuple[str, ...] = ()  # and of a full one
    on_disk: bool = True

    def command(self, path: Path, result: Path, *, is_full: bool) -> list[str]:
        """The words to run."""
        disk = ("--path", str(path)) if self.on_disk else ()
        more = self.full if is_full else self.quick
        return [sys.executable, *self.program, *disk, *more, "--json", str(result)]


def _script(name: str) -> tuple[str, ...]:
    return (str(HERE / name),)


def _lmkv(*words: str) -> tuple[str, ...]:
    return ("-c", "from lmkv.cli import app; app()", "bench", *words)


EXPERIMENTS = (
    Experiment(
        "io",
        "stores and loads of chunks, through the whole core, in turn with fio",
        _lmkv("io"),
        quick=("--rounds", "5", "--gigabytes", "0.5"),
    ),
    Experiment(
        "transfer",
        "gather and scatter of KV blocks, in turn with one copy of as many bytes",
        _lmkv("transfer"),
        quick=("--rounds", "5"),
        on_disk=False,
    ),
    Experiment(
        "memory",
        "host memory that engines share: loads of it, in turn with memcpy of as many bytes",
        _lmkv("memory"),
        quick=("--rounds", "7"),
        on_disk=False,
    ),
    Experiment("lookup", "what a prompt's lookup takes: cold, known, absent", _lmkv("lookup")),
    Experiment(
        "step_overhead",
        "what lmkv takes of an engine's every step, beside a connector that does nothing",
        _script("step_overhead.py"),
        quick=("--steps", "150"),
    ),
    Experiment(
        "ttft",
        "time to first token: cold, on a miss, and on hits of each kind",
        _script("ttft.py"),
        quick=("--documents", "5", "--pairs", "3"),
        full=("--documents", "15"),
    ),
    Experiment(
        "break_even",
        "prompts of every length, computed and loaded",
        _script("break_even.py"),
        quick=("--documents", "5", "--tokens", "64", "128", "256", "512", "1024", "2048"),
        full=("--documents", "9"),
    ),
    Experiment(
        "peers",
        "documents that one engine stores and another loads, with lmkv and with its peers",
        _script("peers.py"),
        quick=("--documents", "5", "--tokens", "1250"),
        full=("--documents", "9"),
    ),
    Experiment(
        "storage_layers",
        "storage layers of lmkv and of its peers, each alone: from host memory to files and back",
        _script("storage_layers.py"),
        full=("--documents", "15"),
    ),
    Experiment(
        "interference",
        "a decode beside prompts that are computed, stored and loaded",
        _script("interference.py"),
        quick=("--repetitions", "5", "--windows", "20", "--window-tokens", "15"),
    ),
    Experiment(
        "workloads",
        "shared documents and conversations, with lmkv and without, to the last answer",
        _script("workloads.py"),
        quick=(
            "--repetitions", "5",
            # Half of everything, and a question less.
            "--kv-tokens", "2048", "--document-tokens", "512", "--question-tokens", "32",
            "--questions", "4", "--turn-tokens", "150", "--answer-tokens", "8",
        ),
        full=("--repetitions", "9"),
    ),
    Experiment(
        "scale",
        "a directory of very many chunks: counting, evicting, looking up",
        _script("scale.py"),
        quick=("--files", "100000"),
        full=("--files", "1000000"),
    ),
)  # fmt: skip
