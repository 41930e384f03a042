"""Hit ratios of eviction orders, by replaying requests.

What lmkv keeps is decided by the evictor's own code (csrc/store/eviction_policy.cpp): the files are
not there, but their times are, stamped as an engine stamps them. Beside it: least recently used,
S3-FIFO, and Belady's order, which knows the future.

A trace has one request a line, as Mooncake's: {"timestamp": ms, "hash_ids": [...]}, equal ids at
equal positions mean equal prefixes. A request hits its longest leading run of blocks that are
there; all its blocks are there afterwards. Sizes are shares of the trace's distinct blocks.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command_line import parser_of, write_result
from rich.console import Console
from rich.table import Table

from lmkv._C import EvictionPolicy, renewed, use_stamp

SIZES = (0.02, 0.05, 0.10, 0.25, 0.50)
BLOCK_TOKENS = 512
EPOCH = 1_800_000_000  # when a trace begins, in seconds
# An evictor makes room for so much at once, in shares of the capacity (five times as much: 2.5 %).
PASS = 0.005


@dataclass(frozen=True, slots=True)
class Request:
    """``ids``: its blocks, numbered from 0 on in the order in which a trace shows them."""

    seconds: float
    ids: Sequence[int]


def numbered(requests: Iterator[tuple[float, Sequence[object]]]) -> list[Request]:
    """Requests whose ids are numbers from 0 on."""
    numbers: dict[object, int] = {}
    return [
        Request(seconds, [numbers.setdefault(one, len(numbers)) for one in ids])
        for seconds, ids in requests
    ]


def read_trace(path: Path) -> list[Request]:
    """The requests of a Mooncake trace, in their order."""
    with path.open(encoding="utf-8") as lines:
        said = map(json.loads, lines)
        return numbered((one["timestamp"] / 1e3, one["hash_ids"]) for one in said)


# -- Workloads that are made here ------------------------------------------------------------------


def multi_turn(seed: int, users: int = 400, requests: int = 6000) -> list[Request]:
    """Chats of two to eight turns behind one system prompt; each turn repeats all before it."""
    chance = random.Random(seed)
    fresh = itertools.count(2)
    waiting = [(chance.expovariate(1 / 60), user, 0, [0, 1]) for user in range(users)]
    heapq.heapify(waiting)

    def ask() -> Iterator[tuple[float, list[int]]]:
        for _ in range(requests):
            at, user, turn, history = heapq.heappop(waiting)
            said = [*history, *itertools.islice(fresh, chance.randint(1, 6))]
            yield at, said
            if turn + 1 < chance.randint(2, 8):
                heapq.heappush(waiting, (at + chance.expovariate(1 / 60), user, turn + 1, said))
            else:
                heapq.heappush(waiting, (at + chance.expovariate(1 / 300), user, 0, [0, 1]))

    return numbered(ask())


def shared_documents(seed: int, documents: int = 500, requests: int = 6000) -> list[Request]:
    """Questions about documents, a few of which most are about (Zipf)."""
    chance = random.Random(seed)
    fresh = itertools.count()
    texts = [list(itertools.islice(fresh, chance.randint(5, 60))) for _ in range(documents)]
    weights = [1 / (rank + 1) ** 0.9 for rank in range(documents)]

    def ask() -> Iterator[tuple[float, list[int]]]:
        at = 0.0
        for _ in range(requests):
            at += chance.expovariate(1 / 0.3)
            (text,) = chance.choices(texts, weights)
            yield at, [*text, *itertools.islice(fresh, chance.randint(1, 2))]

    return numbered(ask())


def scan(seed: int, documents: int = 300, requests: int = 6000) -> list[Request]:
    """A few hot prompts, documents that come round and round, and prompts that come once."""
    chance = random.Random(seed)
    fresh = itertools.count()
    hot = [list(itertools.islice(fresh, 20)) for _ in range(20)]
    rounds = itertools.cycle([list(itertools.islice(fresh, 30)) for _ in range(documents)])

    def ask() -> Iterator[tuple[float, list[int]]]:
        for number in range(requests):
            (kind,) = chance.choices("hro", (4, 3, 3))
            ids = {"h": lambda: chance.choice(hot), "r": lambda: next(rounds)}.get(
                kind, lambda: list(itertools.islice(fresh, 20))
            )()
            yield 0.3 * number, ids

    return numbered(ask())


def drift(seed: int, requests: int = 8000) -> list[Request]:
    """Documents that are asked about most when they are new."""
    chance = random.Random(seed)
    fresh = itertools.count()
    newest: deque[list[int]] = deque(maxlen=40)

    def ask() -> Iterator[tuple[float, list[int]]]:
        at = 0.0
        for number in range(requests):
            at += chance.expovariate(1 / 0.3)
            if number % 20 == 0:
                newest.append(list(itertools.islice(fresh, chance.randint(10, 40))))
            (text,) = chance.choices(newest, [1.2**age for age in range(len(newest))])
            yield at, [*text, *itertools.islice(fresh, chance.randint(0, 3))]

    return numbered(ask())


WORKLOADS: dict[str, Callable[[int], list[Request]]] = {
    "multi-turn": multi_turn,
    "shared documents": shared_documents,
    "scan": scan,
    "drift": drift,
}


# -- Orders ----------------------------------------------------------------------------------------


def distinct(requests: Sequence[Request]) -> int:
    """How many blocks there are."""
    return 1 + max(max(request.ids) for request in requests)


def asked(requests: Sequence[Request]) -> int:
    """How many blocks are asked for, in all."""
    return sum(len(request.ids) for request in requests)


def lmkv(requests: Sequence[Request], capacity: int, order: str = "reuse") -> float:
    """The hit ratio of lmkv's evictor; ``order`` as ``lmkv._C.EvictionPolicy`` takes it."""
    policy = EvictionPolicy(order)
    count = distinct(requests)
    keys = np.array(
        [list(hashlib.sha256(f"{number}".encode()).digest()) for number in range(count)], np.uint8
    )
    there = np.zeros(count, bool)
    times = np.zeros(count, np.int64)  # of the files
    files = hits = 0
    for request in requests:
        ids, now = np.asarray(request.ids), EPOCH + request.seconds
        found = there[ids]
        hits += len(ids) if found.all() else int(np.argmin(found))
        for depth, (one, is_there) in enumerate(zip(request.ids, found, strict=True)):
            stamp = use_stamp(now, depth * BLOCK_TOKENS, now)
            times[one] = renewed(int(times[one]), stamp) if is_there else stamp
        there[ids] = True
        files += int(np.count_nonzero(~found))
        if files <= capacity:
            continue
        present = np.flatnonzero(there)
        worths = policy.scan(keys[present].tobytes(), times[present], int(now * 1e9))
        surplus = files - capacity + int(capacity * PASS)
        first = present[np.lexsort((times[present], worths))[:surplus]]
        there[first] = False
        files -= surplus
        policy.evicted(keys[first].tobytes())
    return hits / asked(requests)


def lru(requests: Sequence[Request], capacity: int) -> float:
    """The hit ratio of least recently used, tails before heads."""
    there: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for request in requests:
        hits += _leading(request.ids, there)
        for one in reversed(request.ids):
            there[one] = None
            there.move_to_end(one)
        while len(there) > capacity:
            there.popitem(last=False)
    return hits / asked(requests)


def s3_fifo(requests: Sequence[Request], capacity: int) -> float:
    """The hit ratio of S3-FIFO (SOSP 2023): a tenth for newcomers, ghosts as many as the rest."""
    newcomers = max(1, capacity // 10)
    uses: dict[int, int] = {}  # of what is there
    small: deque[int] = deque()
    main: deque[int] = deque()
    ghosts: OrderedDict[int, None] = OrderedDict()
    hits = 0

    def evict() -> None:
        if len(small) > newcomers or not main:
            one = small.popleft()
            if uses[one] > 1:
                uses[one] = 0
                main.append(one)
                return
            ghosts[one] = None
            if len(ghosts) > capacity - newcomers:
                ghosts.popitem(last=False)
            del uses[one]
            return
        one = main.popleft()
        if uses[one] > 0:
            uses[one] -= 1
            main.append(one)
        else:
            del uses[one]

    for request in requests:
        hits += _leading(request.ids, uses)
        for one in reversed(request.ids):
            if one in uses:
                uses[one] = min(3, uses[one] + 1)
                continue
            uses[one] = 0
            if ghosts.pop(one, one) is None:
                main.append(one)
            else:
                small.append(one)
        while len(uses) > capacity:
            evict()
    return hits / asked(requests)


def belady(requests: Sequence[Request], capacity: int) -> float:
    """The hit ratio of an order that knows when each block is asked for next."""
    never = len(requests)
    coming: dict[int, int] = {}
    next_use = [[never] * len(request.ids) for request in requests]
    for number in range(len(requests) - 1, -1, -1):
        for place, one in enumerate(requests[number].ids):
            next_use[number][place] = coming.get(one, never)
            coming[one] = number
    there: dict[int, int] = {}  # when it is asked for next
    furthest: list[tuple[int, int, int]] = []
    hits = 0
    for number, request in enumerate(requests):
        hits += _leading(request.ids, there)
        for place, one in enumerate(request.ids):
            there[one] = next_use[number][place]
            heapq.heappush(furthest, (-there[one], -place, one))
        while len(there) > capacity:
            when, _, one = heapq.heappop(furthest)
            if there.get(one) == -when:
                del there[one]
    return hits / asked(requests)


def _leading(ids: Sequence[int], there: dict[int, int] | OrderedDict[int, None]) -> int:
    return next((place for place, one in enumerate(ids) if one not in there), len(ids))


ORDERS: dict[str, Callable[[Sequence[Request], int], float]] = {
    "lmkv": lmkv,
    "lru": lru,
    "s3_fifo": s3_fifo,
    "belady": belady,
}


# -- The table -------------------------------------------------------------------------------------


def measure(requests: Sequence[Request], sizes: Sequence[float] = SIZES) -> list[dict[str, float]]:
    """One row a size: the hit ratio of each order, and lmkv's over that of ``lru``."""
    rows = []
    for size in sizes:
        capacity = max(1, int(distinct(requests) * size))
        row = {name: order(requests, capacity) for name, order in ORDERS.items()}
        rows.append({"size": size, **row, "over_lru": row["lmkv"] / (row["lru"] or 1)})
    return rows


def main() -> None:
    """See the module."""
    parser = parser_of(__doc__.split("\n", maxsplit=1)[0], with_path=False)
    parser.add_argument("trace", type=Path, nargs="?", help="a trace as Mooncake's")
    parser.add_argument("--seed", type=int, default=1, help="of the workloads that are made here")
    parser.add_argument("--only-trace", action="store_true", help="and nothing made here")
    arguments = parser.parse_args()
    if arguments.only_trace and arguments.trace is None:
        parser.error("--only-trace needs a trace")
    made = {} if arguments.only_trace else WORKLOADS
    workloads = {name: make(arguments.seed) for name, make in made.items()}
    if arguments.trace is not None:
        workloads = {arguments.trace.stem: read_trace(arguments.trace), **workloads}
    console = Console(file=sys.stderr if arguments.json == "-" else sys.stdout)
    results: dict[str, list[dict[str, float]]] = {}
    for name, requests in workloads.items():
        results[name] = measure(requests)
        table = Table(title=f"{name}: {len(requests)} requests, {distinct(requests)} blocks")
        for title in ("Size", "lmkv", "LRU", "S3-FIFO", "Belady", "lmkv / LRU"):
            table.add_column(title, justify="right")
        for row in results[name]:
            ratios = [f"{row[order]:.4f}" for order in ORDERS]
            table.add_row(f"{row['size']:.0%}", *ratios, f"{row['over_lru']:.3f}")
        console.print(table)
    write_result(results, arguments.json)


if __name__ == "__main__":
    main()
