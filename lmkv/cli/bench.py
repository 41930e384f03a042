"""``lmkv bench``: parts of lmkv against the limit of this machine."""

from __future__ import annotations

import json
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lmkv._C import cuda_status
from lmkv.bench import arena as arena_bench
from lmkv.bench import io as io_bench
from lmkv.bench import lookup as lookup_bench
from lmkv.bench import transfer as transfer_bench
from lmkv.bench.depth import calibrate as calibrate_depths
from lmkv.bench.memory import CudaMemory
from lmkv.errors import ConfigError
from lmkv.remote.store import Place, RemoteError
from lmkv.tuning import Tuning, load_tuning, save_depths, save_tuning
from lmkv.values import format_size

app = typer.Typer(
    help="Measure parts of lmkv against the limit of this machine.", no_args_is_help=True
)


class Mode(str, Enum):
    """Values of the setting ``transfer``."""

    AUTO = "auto"
    COPY_ENGINE = "copy_engine"
    KERNEL_STAGED = "kernel_staged"
    KERNEL_MAPPED = "kernel_mapped"


@app.callback()
def bench() -> None:
    """Has subcommands."""


@app.command()
def transfer(
    device: Annotated[
        str, typer.Option(help='"host" or "cuda:<n>"; by default the first GPU, if there is one.')
    ] = "",
    mode: Annotated[Mode, typer.Option("--transfer", help="How a GPU copies.")] = Mode.AUTO,
    rounds: Annotated[int, typer.Option(min=1, help="Measured; one more is not counted.")] = 7,
    megabytes: Annotated[int, typer.Option(min=1, help="MiB that one run moves.")] = 256,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Find what is fastest on this GPU, and keep it for auto."),
    ] = False,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help='Write the numbers there; "-": only them.')
    ] = "",
) -> None:
    """Gather and scatter against one contiguous copy of the same bytes.

    Blocks of a KV cache, at random, are copied to host memory as chunks are made of and back, by
    the same code as in an engine; in turn with one memcpy (host) or one DMA (GPU) of as many
    bytes. Exit status: 2 for a device or setting that cannot be.
    """
    device = device or ("cuda:0" if cuda_status().device_count else "host")
    console = Console(stderr=json_file == "-")
    moved = megabytes * transfer_bench.MIB
    try:
        memory = transfer_bench.open_memory(device, transfer_bench.FRAGMENTS, moved)
        kept = load_tuning(memory.name) if isinstance(memory, CudaMemory) else None
        if calibrate:
            _calibrate(memory, console, moved, rounds)
            return
        table = _table(f"{device}, {mode.value}")
        result = transfer_bench.measure(
            memory,
            mode.value,
            moved_bytes=moved,
            rounds=rounds,
            tuning=kept,
            each=partial(_add, table),
        )
    except (ConfigError, ValueError, ImportError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    console.print(table)
    console.print(
        f"Worst from 16 KiB on: gather {result['gather_ratio']:.2f}, scatter "
        f"{result['scatter_ratio']:.2f} of one contiguous copy ({result['memcpy_gbps']:.1f} GB/s)."
    )
    _write(result, json_file)


@app.command()
def io(
    path: Annotated[Path, typer.Option(help="A folder is made in it, and removed again.")],
    chunk_mib: Annotated[
        list[int] | None, typer.Option(min=1, help="Sizes of chunks in MiB; may be repeated.")
    ] = None,
    gigabytes: Annotated[float, typer.Option(min=0.01, help="GB that each run writes.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="fio and lmkv take turns so often.")] = 9,
    io_engine: Annotated[str, typer.Option(help="auto, io_uring or threads.")] = "auto",
    io_threads: Annotated[int, typer.Option(min=1, max=64)] = 1,
    fault: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help='Faults of the disk under lmkv, as in "eio:0.01,delay:20ms:0.1".'
        ),
    ] = "",
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Find how many bytes in flight this disk wants; engines use it."
        ),
    ] = False,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help='Write the numbers there; "-": only them.')
    ] = "",
) -> None:
    """Store and load through the whole core against fio.

    Chunks go from slabs to files and back, checksums on; fio writes and reads files of the same
    sizes, with as many bytes in flight, in turn. Fresh random bytes, O_DIRECT where the filesystem
    has it. With --calibrate several depths are measured instead, without fio. With faults, chunks
    that fail are counted, and rates are those of the others. Exit status: 2 without fio, or for a
    directory that cannot be used.
    """
    console = Console(stderr=json_file == "-")
    table = Table(title=f"{path}")
    for heading in ("Chunk", "Store GB/s", "fio", "Ratio", "Load GB/s", "fio", "Ratio", "CPU s/GB"):
        table.add_column(heading, justify="right")
    settings = io_bench.Settings(path=path, io_engine=io_engine, io_threads=io_threads, fault=fault)
    moved = int(gigabytes * 1e9)
    try:
        if calibrate:
            _calibrate_io(settings, console, moved, rounds)
            return
        result = io_bench.measure(
            settings,
            chunks_mib=chunk_mib or io_bench.CHUNKS_MIB,
            bytes_total=moved,
            rounds=rounds,
            each=partial(_add_io, table),
        )
    except (ConfigError, OSError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    console.print(table)
    if fault:
        failed = result["failed"]
        console.print(
            f"With faults {fault}: {failed['store']} stores and {failed['load']} loads failed."
        )
    _write(result, json_file)


@app.command()
def lookup(
    path: Annotated[Path, typer.Option(help="A folder is made in it, and removed again.")],
    chunks: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = lookup_bench.CHUNKS,
    prefixes: Annotated[int, typer.Option(min=1, help="Prompts, each with its own files.")] = 40,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help='Write the numbers there; "-": only them.')
    ] = "",
) -> None:
    """How long it takes to find a prompt's chunks.

    Files are made for as many prompts, and looked up as a scheduler does: by an engine that has
    just started ("cold"), also after the kernel was made to forget all names ("dropped": as root;
    that slows the whole machine down for a moment); again; and prompts of which nothing is there.
    Exit status: 2 for a directory that cannot be used.
    """
    console = Console(stderr=json_file == "-")
    try:
        result = lookup_bench.measure(path, chunks=chunks, prefixes=prefixes)
    except (ConfigError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    table = Table(title=f"{path}, prompts of {chunks} chunks")
    for heading in ("", "Answer p50 us", "p99", "Scheduler held p50 us", "p99", "Keys/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in result.items():
        if isinstance(row, dict):
            cells = [row[key] for key in ("p50_us", "p99_us", "call_p50_us", "call_p99_us")]
            numbers = [f"{cell:.0f}" for cell in cells]
            table.add_row(name, *numbers, f"{row['keys_per_s']:.3g}")
    console.print(table)
    _write(result, json_file)


@app.command()
def memory(
    rounds: Annotated[int, typer.Option(min=1, help="Measured; one more is not counted.")] = 9,
    megabytes: Annotated[int, typer.Option(min=1, help="MiB of chunks, at least.")] = 256,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help='Write the numbers there; "-": only them.')
    ] = "",
) -> None:
    """Host memory that all engines of a node share: attaching, looking up, loading.

    Chunks are stored into an arena of their own in /dev/shm, and loaded by 1, 2 and 4 processes at
    once, each into a paged KV cache of its own, in turn with one memcpy of as many bytes by each.
    Exit status: 2 where there is no room.
    """
    console = Console(stderr=json_file == "-")
    table = Table(title="Of each process")
    for heading in ("Processes", "Scatter GB/s", "memcpy", "Ratio", "Range", "First scatter GB/s"):
        table.add_column(heading, justify="right")
    try:
        result = arena_bench.measure(
            moved_bytes=megabytes * arena_bench.MIB, rounds=rounds, each=partial(_add_loads, table)
        )
    except (ConfigError, OSError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    console.print(table)
    attach, keys, prompt = (
        result[name] for name in ("attach_ms", "lookup_ns_per_key", "lookup_512_us")
    )
    console.print(
        f"{result['cores']} cores. An engine starts in {attach['arena']:.1f} ms, with memory of "
        f"its own in {attach['own']:.1f} ms; a scheduler attaches in {attach['view']:.2f} ms.\n"
        f"A lookup of {arena_bench.KEYS} chunks takes {prompt['p50']:.0f} us (p99 "
        f"{prompt['p99']:.0f}), {keys['present']:.0f} ns a key; of one that is not there "
        f"{keys['absent']:.0f} ns."
    )
    _write(result, json_file)


@app.command()
def remote(
    url: Annotated[str, typer.Argument(help="As the setting `remote`, but no directory.")],
    option: Annotated[
        list[str], typer.Option("--option", metavar="NAME=VALUE", help="As `remote_options`.")
    ] = [],  # noqa: B006 - typer's way to take several
    rounds: Annotated[int, typer.Option(min=1, help="Measured; one more is not counted.")] = 5,
    chunks: Annotated[int, typer.Option(min=1, help="Of one round, each way.")] = 16,
    chunk_mib: Annotated[int, typer.Option(min=1, help="MiB of one chunk.")] = 12,
    singles: Annotated[int, typer.Option(min=1, help="Loads of one chunk, for latencies.")] = 50,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help='Write the numbers there; "-": only them.')
    ] = "",
) -> None:
    """A remote tier through lmkv, in turn with its own client.

    Chunks are put there by one engine and got by another, which verifies them and copies them into
    a paged KV cache; the client puts and gets as many objects of the same size. Exit status: 2
    where it cannot be reached.
    """
    from lmkv.bench import remote as remote_bench  # its libraries take a while

    console = Console(stderr=json_file == "-")
    table = Table(title=url)
    for heading in ("", "GB/s", "Client", "Ratio", "Range"):
        table.add_column(heading, justify="right" if heading else "left")
    try:
        place = _remote_place(url, option)
        result = remote_bench.measure(
            place,
            chunk_bytes=chunk_mib << 20,
            chunks=chunks,
            rounds=rounds,
            singles=singles,
            each=partial(_add_remote, table),
        )
    except (ConfigError, RemoteError, OSError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    console.print(table)
    ours, client = result["latency"]["get"], result["latency"]["client_get"]
    console.print(
        f"One chunk takes {ours['p50_ms']:.1f} ms (p99 {ours['p99_ms']:.1f}) from there into the "
        f"KV cache; the client needs {client['p50_ms']:.1f} ms (p99 {client['p99_ms']:.1f})."
    )
    _write(result, json_file)


def _remote_place(url: str, options: list[str]) -> Place:
    pairs = [one.partition("=") for one in options]
    place = Place.parse(url, {name: value for name, _, value in pairs})
    if not all(name and equals for name, equals, _ in pairs):
        raise ConfigError("an option is NAME=VALUE")
    if place.directory:
        raise ConfigError("a directory is measured by `bench io`")
    return place


def _add_remote(table: Table, way: str, row: dict[str, Any]) -> None:
    low, high = row["ratio_range"]
    rates = [f"{row[name]:.2f}" for name in ("gbps", "client_gbps", "ratio")]
    table.add_row(way, *rates, f"{low:.2f} to {high:.2f}")


def _add_loads(table: Table, processes: int, row: dict[str, Any]) -> None:
    rates = [f"{row[key]:.2f}" for key in ("scatter_gbps", "memcpy_gbps", "ratio")]
    low, high = row["ratio_range"]
    table.add_row(
        f"{processes}", *rates, f"{low:.2f} to {high:.2f}", f"{row['first_scatter_gbps']:.2f}"
    )


def _calibrate_io(settings: io_bench.Settings, console: Console, moved: int, rounds: int) -> None:
    table = Table(title=f"{settings.path}")
    for heading in ("In flight", "Store GB/s", "Load GB/s"):
        table.add_column(heading, justify="right")

    def add(row: dict[str, Any]) -> None:
        rates = (row["store_gbps"], row["load_gbps"])
        table.add_row(f"{row['depth_mib']} MiB", *(f"{rate:.2f}" for rate in rates))

    depths = calibrate_depths(settings, bytes_total=moved, rounds=rounds, each=add)
    console.print(table)
    console.print(
        f"{format_size(depths.load_depth)} of loads, {format_size(depths.store_depth)} of stores: "
        f"kept in {save_depths(str(settings.path), depths)}"
    )


def _add_io(table: Table, row: dict[str, Any]) -> None:
    cells = [f"{row['chunk_mib']} MiB"]
    for way in ("store", "load"):
        found = row[way]
        cells += [f"{found['gbps']:.2f}", f"{found['fio_gbps']:.2f}", f"{found['ratio']:.2f}"]
    table.add_row(*cells, f"{row['cpu_s_per_gb']:.3f}")


def _write(result: dict[str, Any], json_file: str) -> None:
    if json_file == "-":
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _calibrate(memory: Any, console: Console, moved: int, rounds: int) -> None:
    if not isinstance(memory, CudaMemory):
        console.print("The host's memory is copied in one way only: there is nothing to calibrate.")
        return
    small = transfer_bench.FRAGMENTS[1:2]
    rates = {}
    for count in transfer_bench.THREAD_BLOCKS:
        options = Tuning(thread_blocks=count)
        row = transfer_bench.measure(
            memory, "kernel_staged", fragments=small, moved_bytes=moved, rounds=3, tuning=options
        )
        rates[count] = min(row["gather_gbps"], row["scatter_gbps"])
        console.print(f"{count:3} thread blocks: {rates[count]:.2f} GB/s")
    thread_blocks = transfer_bench.fewest_thread_blocks(rates)
    options = Tuning(thread_blocks=thread_blocks)
    measured = {}
    for mode in transfer_bench.MODES:
        table = _table(f"{memory.name}, {mode}")
        measured[mode] = transfer_bench.measure(
            memory,
            mode,
            moved_bytes=moved,
            rounds=rounds,
            tuning=options,
            each=partial(_add, table),
        )["by_fragment"]
        console.print(table)
    tuning = transfer_bench.tuning_of(measured, thread_blocks)
    console.print(f"{tuning}\nkept in {save_tuning(memory.name, tuning)}")


def _table(title: str) -> Table:
    table = Table(title=title)
    for heading in ("Fragment", "Gather GB/s", "Ratio", "Scatter GB/s", "Ratio", "By"):
        table.add_column(heading, justify="left" if heading == "By" else "right")
    return table


def _add(table: Table, row: dict[str, Any]) -> None:
    table.add_row(
        format_size(row["fragment_bytes"]),
        f"{row['gather_gbps']:.2f}",
        f"{row['gather_ratio']:.2f}",
        f"{row['scatter_gbps']:.2f}",
        f"{row['scatter_ratio']:.2f}",
        " / ".join(dict.fromkeys([row["gather_mode"], row["scatter_mode"]])),
    )
