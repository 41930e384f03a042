"""Gather and scatter on a GPU, by every mode and fragment size, and what they cost the model.

    python benchmarks/gpu_transfer.py [--json FILE] [--png FILE] [--device cuda:0]

Rates are against one DMA between the GPU and pinned memory, in turn with it in one run. The cost is
the slowdown of a matrix product that runs meanwhile on another stream: medians of its time with and
without transfers, interleaved. With ``--device host`` the same runs over the host's copies, to try
this program where there is no GPU; the product is the CPU's then.
"""

import argparse
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmkv._C import TransferBench, TransferOptions, cuda_status
from lmkv.bench.memory import PagedMemory
from lmkv.bench.transfer import DIRECTIONS, FRAGMENTS, KIB, MIB, MODES, Case, measure, open_memory

PRODUCT_FRAGMENTS = (8 * KIB, 64 * KIB, MIB)


def matrix_product(device: str) -> Callable[[], float]:
    """A function that multiplies two matrices some times and returns the seconds it took."""
    import torch

    on_gpu = device != "host"
    side = 8192 if on_gpu else 512
    dtype = torch.float16 if on_gpu else torch.float32
    where = device if on_gpu else "cpu"
    a = torch.randn(side, side, dtype=dtype, device=where)
    b = torch.randn(side, side, dtype=dtype, device=where)
    stream = torch.cuda.Stream(device) if on_gpu else None

    def run() -> float:
        if stream is None:
            begin = time.perf_counter()
            for _ in range(20):
                torch.mm(a, b)
            return time.perf_counter() - begin
        with torch.cuda.stream(stream):
            first = torch.cuda.Event(enable_timing=True)
            last = torch.cuda.Event(enable_timing=True)
            first.record()
            for _ in range(20):
                torch.mm(a, b)
            last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    return run


class Transfers:
    """Gathers, or scatters, over and over, in a thread of their own."""

    def __init__(self, bench: TransferBench, direction: str, chunks: list[list[int]]) -> None:
        self._bench, self._direction, self._chunks = bench, direction, chunks
        self._stop = threading.Event()
        self._runs = 0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()
        time.sleep(0.02)  # under way

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        if not self._runs:
            raise RuntimeError("nothing was moved meanwhile")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._bench.run(self._direction, self._chunks)
                self._runs += 1
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error


def slowdown(
    memory: PagedMemory, mode: str, fragment: int, moved_bytes: int, rounds: int
) -> dict[str, Any]:
    """By how much a matrix product takes longer while blocks are moved."""
    case = Case.of(fragment, moved_bytes)
    bench = TransferBench(
        device=memory.device,
        segments=case.segments(memory.address),
        host_bytes=case.bytes_moved,
        transfer=TransferOptions(mode=mode),
    )
    run = matrix_product(memory.device)
    run()
    row: dict[str, Any] = {"mode": mode, "fragment_bytes": fragment}
    for direction in DIRECTIONS:
        ratios = []
        for number in range(rounds):
            alone = run()
            with Transfers(bench, direction, case.chunks(number)):
                ratios.append(run() / alone)
        row[f"{direction}_slowdown"] = statistics.median(ratios)
        row[f"{direction}_slowdown_range"] = [min(ratios), max(ratios)]
    return row


def draw(results: dict[str, Any], path: Path) -> None:
    """GB/s by fragment size and mode, beside one DMA."""
    import altair as alt  # make docs' packages: absent on a bare GPU machine
    import vl_convert

    points = [
        {
            "direction": direction,
            "way": way,
            "KiB": row["fragment_bytes"] / KIB,
            "GB/s": row[f"{direction}{'' if way == mode else '_copy'}_gbps"],
        }
        for mode, rows in results["by_mode"].items()
        for row in rows
        for direction in DIRECTIONS
        for way in (mode, "one DMA")
    ]
    lines = alt.Chart(alt.Data(values=points)).mark_line(point=True)
    chart = lines.encode(
        x=alt.X("KiB:Q", scale=alt.Scale(type="log", base=2), title="Fragment (KiB)"),
        y=alt.Y("median(GB/s):Q", title="GB/s"),
        color=alt.Color("way:N", title=None),
        column=alt.Column("direction:N", title=results["gpu"]),
    )
    path.write_bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=2))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Gather and scatter on a GPU.")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--draw", type=Path, help="draw the --png of this earlier --json, no more")
    parser.add_argument("--megabytes", type=int, default=256, help="MiB that one run moves")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.draw is not None:
        draw(json.loads(arguments.draw.read_text()), arguments.png)
        return
    if arguments.device != "host" and not cuda_status().device_count:
        sys.exit(f"error: no CUDA device: {cuda_status().reason}")

    moved = arguments.megabytes * MIB
    memory = open_memory(arguments.device, FRAGMENTS, moved)
    modes = MODES if arguments.device != "host" else ("auto",)
    results: dict[str, Any] = {
        "gpu": getattr(memory, "name", platform.processor() or "host"),
        "megabytes": arguments.megabytes,
        "rounds": arguments.rounds,
        "by_mode": {},
        "beside_a_matrix_product": [],
    }
    for mode in modes:
        rows = measure(memory, mode, moved_bytes=moved, rounds=arguments.rounds)["by_fragment"]
        results["by_mode"][mode] = rows
        for row in rows:
            print(
                f"{mode:14} {row['fragment_bytes'] // KIB:5} KiB  "
                f"gather {row['gather_gbps']:6.2f} ({row['gather_ratio']:.2f})  "
                f"scatter {row['scatter_gbps']:6.2f} ({row['scatter_ratio']:.2f})",
                flush=True,
            )
        for fragment in PRODUCT_FRAGMENTS:
            row = slowdown(memory, mode, fragment, moved, arguments.rounds)
            results["beside_a_matrix_product"].append(row)
            print(
                f"{mode:14} {fragment // KIB:5} KiB  a matrix product takes "
                f"{row['gather_slowdown']:.3f} (gather) and {row['scatter_slowdown']:.3f} "
                "(scatter) times as long",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.png is not None:
        try:
            draw(results, arguments.png)
        except ImportError as error:
            print(f"no picture here ({error}): draw it elsewhere with --draw and the JSON")


if __name__ == "__main__":
    main()
