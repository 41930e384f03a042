"""Whether loading pays: what loads and prefills have taken lately, and what that says of the next.

In ten lines. Computing a token takes what it took in the latest steps that prefilled; loading takes
a constant and so much a token, fitted to the latest loads, with the tokens that loads under way
still have to bring counted as ahead of it. A request waits for the longer of its load and the
prefills ahead of it, and then computes what was not loaded: of all leading parts of what was found
it loads the one with which it is done first. What still lies in host memory costs next to nothing.
A load must not take much longer than was thought, or it is given up and the rest computed. Before
any load was seen, and now and then where loads do not pay, one is tried, for a twentieth of what
computing would take. Before any prefill was seen there is nothing to compare with: all is loaded.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from enum import Enum

from lmkv.vllm.lookup import Run

# Steps that prefill fewer tokens say more of what a step costs than of what a token does.
FEWEST_TOKENS = 64

# What a load may take at least, as a part of what computing would; and what it may take of what
# was expected of it. A request is then never late by more than that.
TRIAL_SHARE = 0.05
OVERRUN = 3.0

# Where loads do not pay, one is tried again after so long, and then twice as long, up to ten
# minutes.
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 600.0


class Line:
    """Seconds over tokens: least squares over samples, of which each counts ``memory`` times as
    much as the one after it.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self.clear()

    def clear(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def __bool__(self) -> bool:
        return self._n > 0

    def add(self, tokens: float, seconds: float) -> None:
        keep = self._memory
        self._n = self._n * keep + 1
        self._x = self._x * keep + tokens
        self._y = self._y * keep + seconds
        self._xx = self._xx * keep + tokens * tokens
        self._xy = self._xy * keep + tokens * seconds

    def fit(self) -> tuple[float, float]:
        """Seconds of no tokens, and of each; both at least 0. Where the samples are all of about
        one size, or say that more tokens take less, the tokens are taken to be all that counts.
        """
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x * mean_x
        if variance > (0.1 * mean_x) ** 2:
            slope = (self._xy / self._n - mean_x * mean_y) / variance
            start = mean_y - slope * mean_x
            if slope > 0 and start >= 0:
                return start, slope
        return 0.0, mean_y / mean_x

    def at(self, tokens: float) -> float:
        start, slope = self.fit()
        return start + slope * tokens


class Verdict(Enum):
    """What was decided of the chunks that were found for a request."""

    LOAD = "load"
    CUT = "cut"
    COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class Decision:
    """How many of the chunks to load, in how many seconds at most, and why.

    ``load_seconds`` and ``compute_seconds``: what all of them were thought to take; None where
    nothing was known. ``disk_tokens``: those to be read, which the load's time is set against.
    """

    chunks: int
    verdict: Verdict
    within: float | None = None
    load_seconds: float | None = None
    compute_seconds: float | None = None
    disk_tokens: int = 0
    is_trial: bool = False

    def cut_to(self, chunks: int) -> "Decision":
        """That of fewer chunks, where so many cannot be loaded without those behind them."""
        if not chunks:
            return replace(self, chunks=0, verdict=Verdict.COMPUTE, within=None, disk_tokens=0)
        disk_tokens = self.disk_tokens * chunks // self.chunks
        return replace(self, chunks=chunks, verdict=Verdict.CUT, disk_tokens=disk_tokens)


@dataclass(slots=True)
class _Part:
    """A leading part of what was found."""

    chunks: int
    tokens: int  # that the request gains
    disk_tokens: int  # to be read for it
    seconds: float = 0.0  # until the request is computed


class Pace:
    """See the module. Scheduler thread only; never blocks."""

    def __init__(
        self, policy: str, block_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``policy``: the setting ``load_policy``."""
        self._policy = policy
        self._block_tokens = block_tokens
        self._clock = clock
        self._prefills = Line(memory=0.9)
        self._loads = Line(memory=0.7)
        self._try_again = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._most_recent = 0

    def remember_up_to(self, chunks: int) -> None:
        """How many chunks a worker's host memory has room for; half as many are counted on."""
        self._most_recent = chunks // 2

    def has_in_memory(self, keys: Iterable[bytes]) -> None:
        """Chunks that were stored or loaded just now, and lie in host memory for a while."""
        for key in keys:
            self._recent[key] = None
            self._recent.move_to_end(key)
        while len(self._recent) > self._most_recent:
            self._recent.popitem(last=False)

    # -- what was seen -----------------------------------------------------------------------

    def saw_prefill(self, tokens: int, seconds: float) -> None:
        """A step prefilled so many tokens, whatever else it did."""
        if tokens >= FEWEST_TOKENS and seconds > 0:
            self._prefills.add(tokens, seconds)

    def saw_load(self, tokens: int, seconds: float, *, trial: bool) -> None:
        """A load was done when so many tokens had been read, its own and those ahead of it."""
        if tokens <= 0 or seconds <= 0:
            return
        if trial:  # what was known may be of another time
            self._loads.clear()
        self._loads.add(tokens, seconds)

    def gave_up(self, tokens: int, seconds: float) -> None:
        """A load was given up when so many tokens had been read: what was expected is refuted."""
        self._loads.clear()
        self._loads.add(max(tokens, 1), seconds)

    @property
    def compute_seconds_per_token(self) -> float | None:
        """None before any prefill was seen."""
        return self._prefills.fit()[1] if self._prefills else None

    @property
    def load_seconds_per_token(self) -> float | None:
        """Of long loads; None before any was seen."""
        return self._loads.fit()[1] if self._loads else None

    # -- what to do --------------------------------------------------------------------------

    def decide(
        self,
        found: Run,
        first_block: int,
        *,
        in_memory: Container[bytes],
        ahead: int,
        backlog: int,
    ) -> Decision:
        """How much of ``found`` to load for a request whose local hit ends before ``first_block``.

        ``in_memory``: chunks that lie in host memory besides those that are thought to. ``ahead``:
        tokens that loads under way have to bring; ``backlog``: tokens that admitted requests have
        to prefill.
        """
        if self._policy == "never" or not found:
            return Decision(0, Verdict.COMPUTE)
        everything, memory = self._parts(found, first_block, in_memory)
        per_token = self.compute_seconds_per_token
        if self._policy == "always" or per_token is None:
            return Decision(everything.chunks, Verdict.LOAD, disk_tokens=everything.disk_tokens)
        computing = per_token * everything.tokens
        least = TRIAL_SHARE * computing
        if not everything.disk_tokens:
            return Decision(everything.chunks, Verdict.LOAD, compute_seconds=computing)
        if not self._loads:
            return self._trial(everything, least, None, computing)
        start, slope = self._loads.fit()
        loading = start + slope * (ahead + everything.disk_tokens)
        best = self._best([everything, memory], found, first_block, ahead, backlog, per_token)
        if best.chunks < everything.chunks:
            if self._clock() >= self._try_again:
                self._try_again = self._clock() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
                return self._trial(everything, least, loading, computing)
        else:
            self._pause = FIRST_PAUSE_SECONDS
        within = None
        if best.disk_tokens:
            expected = start + slope * (ahead + best.disk_tokens)
            most = max(per_token * (backlog + best.tokens), expected)
            within = min(most, max(OVERRUN * expected, least))
        verdict = Verdict.LOAD if best.chunks == everything.chunks else Verdict.CUT
        return Decision(
            best.chunks,
            verdict if best.chunks else Verdict.COMPUTE,
            within,
            loading,
            computing,
            best.disk_tokens,
        )

    def _trial(
        self, part: _Part, within: float, loading: float | None, computing: float
    ) -> Decision:
        return Decision(
            part.chunks, Verdict.LOAD, within, loading, computing, part.disk_tokens, is_trial=True
        )

    def _parts(
        self, found: Run, first_block: int, in_memory: Container[bytes]
    ) -> tuple[_Part, _Part]:
        """All of it, and what leads of it in host memory."""
        everything, memory = _Part(0, 0, 0), _Part(0, 0, 0)
        leads = True
        for chunk in found:
            everything.chunks += 1
            everything.tokens = (chunk.end - first_block) * self._block_tokens
            if chunk.key not in self._recent and chunk.key not in in_memory:
                leads = False
                everything.disk_tokens += (chunk.end - chunk.begin) * self._block_tokens
            if leads:
                memory = _Part(everything.chunks, everything.tokens, 0)
        return everything, memory

    def _best(
        self,
        parts: list[_Part],
        found: Run,
        first_block: int,
        ahead: int,
        backlog: int,
        per_token: float,
    ) -> _Part:
        """The part with which the request is done first; of equal ones the longest.

        The time is linear between these: nothing, what is in memory, what is read while others
        compute, and all.
        """
        everything, memory = parts
        start, slope = self._loads.fit()
        waits = per_token * backlog
        candidates = [everything, memory, _Part(0, 0, 0)]
        if slope > 0 and everything.disk_tokens:
            free = (waits - start) / slope - ahead
            share = min(1.0, max(0.0, free / everything.disk_tokens))
            chunks = int(share * len(found))
            if memory.chunks < chunks < everything.chunks:
                end = found.begin + chunks * found.blocks_per_chunk
                tokens = (end - first_block) * self._block_tokens
                disk = round(share * everything.disk_tokens)
                candidates.insert(1, _Part(chunks, tokens, disk))
        for part in candidates:
            loading = start + slope * (ahead + part.disk_tokens) if part.disk_tokens else 0.0
            rest = per_token * (everything.tokens - part.tokens)
            part.seconds = max(loading, waits) + rest
        return min(candidates, key=lambda part: (part.seconds, -part.chunks))
