"""Gather and scatter against one contiguous copy of the same bytes, interleaved in one run."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from lmkv._C import TransferBench, TransferOptions, cuda_status
from lmkv.bench.memory import CudaMemory, HostMemory, PagedMemory
from lmkv.errors import ConfigError
from lmkv.tuning import Tuning

KIB, MIB = 1 << 10, 1 << 20
FRAGMENTS = (4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 256 * KIB, MIB)
COUNTED_FROM = 16 * KIB  # smaller fragments are shown, but no part of the headline
MODES = ("copy_engine", "kernel_staged", "kernel_mapped")
BLOCKS_PER_CHUNK = 16
DIRECTIONS = ("gather", "scatter")
# Of the fastest way: what is so near and leaves more SMs to the model is taken.
NEAR = 0.95
THREAD_BLOCKS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Case:
    """One layout: ``layers`` runs of ``fragment`` bytes in each of ``blocks`` blocks.

    Layers are outermost, as vLLM lays the KV cache out by default, and half of the blocks, at
    random, are moved, in chunks of 16.
    """

    fragment: int
    layers: int
    blocks: int

    @classmethod
    def of(cls, fragment: int, moved_bytes: int) -> Case:
        """About ``moved_bytes`` to move: fewer layers, then fewer blocks, for large fragments."""
        layers = max(1, min(32, moved_bytes // (fragment * BLOCKS_PER_CHUNK)))
        chunks = max(1, moved_bytes // (fragment * layers * BLOCKS_PER_CHUNK))
        return cls(fragment, layers, 2 * chunks * BLOCKS_PER_CHUNK)

    @property
    def bytes_total(self) -> int:
        """Of the whole cache."""
        return self.fragment * self.layers * self.blocks

    @property
    def bytes_moved(self) -> int:
        """By one run."""
        return self.bytes_total // 2

    def segments(self, address: int) -> list[tuple[int, int, int]]:
        """The core's segment table."""
        layer = self.fragment * self.blocks
        return [(address + i * layer, self.fragment, self.fragment) for i in range(self.layers)]

    def chunks(self, seed: int) -> list[list[int]]:
        """Half of the block ids, in random order."""
        ids = random.Random(seed).sample(range(self.blocks), self.blocks // 2)
        return [ids[at : at + BLOCKS_PER_CHUNK] for at in range(0, len(ids), BLOCKS_PER_CHUNK)]


def measure_case(
    memory: PagedMemory, case: Case, options: TransferOptions, rounds: int
) -> dict[str, Any]:
    """GB/s (1e9 bytes) of gather, scatter and the contiguous copies; medians, ratios, spread.

    Every round does all of them, since machines drift. The first round is not counted.
    """
    bench = TransferBench(
        device=memory.device,
        segments=case.segments(memory.address),
        host_bytes=case.bytes_moved,
        transfer=options,
    )
    rates: dict[str, list[float]] = {
        key: [] for name in DIRECTIONS for key in (name, f"copy_{name}")
    }
    size = case.bytes_moved
    for number in range(rounds + 1):
        chunks = case.chunks(number)
        for direction in DIRECTIONS:
            copied = memory.copy_seconds(direction, bench.address, size)
            moved = bench.run(direction, chunks, memory.stream())
            if number:
                rates[f"copy_{direction}"].append(size / copied / 1e9)
                rates[direction].append(size / moved / 1e9)
    info = bench.info()
    row: dict[str, Any] = {
        "fragment_bytes": case.fragment,
        "bytes_moved": size,
        "pin_error": info["pin_error"],
    }
    for direction in DIRECTIONS:
        copies = rates[f"copy_{direction}"]
        ratios = [a / b for a, b in zip(rates[direction], copies, strict=True)]
        row[f"{direction}_mode"] = info[direction]
        row[f"{direction}_gbps"] = statistics.median(rates[direction])
        row[f"{direction}_gbps_range"] = [min(rates[direction]), max(rates[direction])]
        row[f"{direction}_copy_gbps"] = statistics.median(copies)
        row[f"{direction}_ratio"] = statistics.median(ratios)
        row[f"{direction}_ratio_range"] = [min(ratios), max(ratios)]
    return row


def open_memory(device: str, fragments: Sequence[int], moved_bytes: int) -> PagedMemory:
    """Memory that is large enough for the cases of all ``fragments``. Raises ConfigError."""
    size = max(Case.of(fragment, moved_bytes).bytes_total for fragment in fragments)
    if device == "host":
        return HostMemory(size)
    status, number = cuda_status(), device.removeprefix("cuda:")
    if not number.isdecimal() or number == device:
        raise ConfigError(f'device: must be "host" or "cuda:<n>", not {device!r}')
    if int(number) >= status.device_count:
        raise ConfigError(f"{device}: {status.reason or f'there are {status.device_count} GPUs'}")
    return CudaMemory(size, int(number))


def measure(
    memory: PagedMemory,
    mode: str,
    *,
    fragments: Sequence[int] = FRAGMENTS,
    moved_bytes: int = 256 * MIB,
    rounds: int = 7,
    tuning: Tuning | None = None,
    each: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Measure all ``fragments`` in ``mode``; ``each`` sees every row as it is done.

    The headline (``gather_gbps`` ... ``scatter_ratio``) is that of the worst fragment of 16 KiB or
    more. Blocks for seconds to minutes.
    """
    options = (tuning or Tuning()).options(mode)
    rows = []
    for fragment in fragments:
        rows.append(measure_case(memory, Case.of(fragment, moved_bytes), options, rounds))
        if each is not None:
            each(rows[-1])
    counted = [row for row in rows if row["fragment_bytes"] >= COUNTED_FROM] or rows
    worst = {d: min(counted, key=itemgetter(f"{d}_ratio")) for d in DIRECTIONS}
    copies = [row[f"{d}_copy_gbps"] for row in counted for d in DIRECTIONS]
    result: dict[str, Any] = {"device": memory.device, "mode": mode, "rounds": rounds}
    for direction in DIRECTIONS:
        result[f"{direction}_gbps"] = worst[direction][f"{direction}_gbps"]
        result[f"{direction}_ratio"] = worst[direction][f"{direction}_ratio"]
    return result | {"memcpy_gbps": statistics.median(copies), "by_fragment": rows}


def fewest_thread_blocks(rates: dict[int, float]) -> int:
    """The smallest number of thread blocks whose rate is within 5 % of the best."""
    good = NEAR * max(rates.values())
    return min(count for count, rate in rates.items() if rate >= good)


def tuning_of(measured: dict[str, list[dict[str, Any]]], thread_blocks: int = 8) -> Tuning:
    """Thresholds from the rows of every mode (``MODES``), over the same ascending fragments.

    The copy engine is taken from the smallest fragment on from which it stays within 5 % of the
    fastest kernel, for it leaves the SMs to the model. Below, that kernel which is faster at the
    fragments that are then left to kernels, by the sum of the times per byte.
    """
    fragments = [row["fragment_bytes"] for row in measured["copy_engine"]]
    settings: dict[str, Any] = {"thread_blocks": thread_blocks}
    for direction in DIRECTIONS:
        rates = {mode: [row[f"{direction}_gbps"] for row in measured[mode]] for mode in MODES}
        kernels = [max(pair) for pair in zip(*(rates[mode] for mode in MODES[1:]), strict=True)]
        first = len(fragments)
        while first and rates["copy_engine"][first - 1] >= NEAR * kernels[first - 1]:
            first -= 1
        left = range(first or len(fragments))  # all of them, if none: some layout is smaller still
        seconds = {mode: sum(1 / rates[mode][i] for i in left) for mode in MODES[1:]}
        settings[f"{direction}_below"] = min(seconds, key=seconds.__getitem__)
        settings[f"{direction}_copy_engine_from"] = (
            fragments[first] if first < len(fragments) else 2 * fragments[-1]
        )
    return Tuning(**settings)
