"""Whether loading pays: what loads and prefills have taken lately, and what that says of the next.

In ten lines. Computing a token takes what it took in the latest steps that prefilled; loading takes
a constant and so much a token, fitted to the latest loads, with the tokens that loads under way
still have to bring counted as ahead of it. A request waits for the longer of its load and the
prefills ahead of it, and then computes what was not loaded: of all leading parts of what was found
it loads the one with which it is done first. What still lies in host memory costs next to nothing.
A load must not take much longer than was thought, nor than computing what has arrived would have,
or it is given up and the rest computed. Before any load was seen, and, where loads do not
pay, now and then or if it is far larger than any before, one is tried, for a twentieth of what
computing would take: what the directory does for it until it has read what it was asked for says
how fast it is. Where nothing else is known, others
wait for that, for a twentieth of what computing them would take. Before any prefill was seen there
is nothing to compare with: all is loaded. All this is known of the directories and of the remote
tier apart; a load that needs anything of the latter is thought to take what such loads have taken,
and where that does not pay what leads of it in the directories is loaded, if that does.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from enum import Enum

from lmkv.vllm.lookup import Run
from lmkv.vllm.reads import Line, Reads

# Steps that prefill fewer tokens, or few beside others lately, say more of what a step costs than
# of what a token does.
FEWEST_TOKENS = 64
FEW_BESIDE_OTHERS = 0.25
FORGET_LARGE_STEPS = 0.99  # a small step

# What a load may take before anything arrives, as a part of what computing would: a trial, and one
# that was expected to pay. The latter may also take so many times what was expected.
TRIAL_SHARE = 0.05
PATIENT_SHARE = 0.25
OVERRUN = 3.0


class Verdict(Enum):
    """What was decided of the chunks that were found for a request."""

    LOAD = "load"
    CUT = "cut"
    COMPUTE = "compute"
    WAIT = "wait"  # until a trial has shown how fast loads are; ask again in the next step


@dataclass(frozen=True, slots=True)
class Decision:
    """How many of the chunks to load, for how long (``Load.within``, ``Load.worth``), and why.

    ``load_seconds`` and ``compute_seconds``: what all of them were thought to take; None where
    nothing was known. ``disk_tokens``: those to be read, which the load's time is set against.
    """

    chunks: int
    verdict: Verdict
    within: float | None = None
    worth: float = 0.0
    load_seconds: float | None = None
    compute_seconds: float | None = None
    disk_tokens: int = 0
    is_trial: bool = False
    is_remote: bool = False  # some of it is read from the remote tier

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
        self._local = Reads()
        self._remote = Reads()
        self._largest = 0.0  # steps that prefilled lately
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
        if tokens < FEWEST_TOKENS or seconds <= 0:
            return
        self._largest = max(tokens, self._largest * FORGET_LARGE_STEPS)
        if tokens >= self._largest * FEW_BESIDE_OTHERS:
            self._prefills.add(tokens, seconds)

    def saw_load(
        self, tokens: int, seconds: float, *, trial: bool, is_remote: bool = False
    ) -> None:
        """A load was done when so many tokens had been read, its own and those ahead of it."""
        if tokens > 0 and seconds > 0:
            self._reads(is_remote).saw(tokens, seconds, self._clock(), trial=trial)

    def began_trial(self, tokens: int, *, is_remote: bool = False) -> None:
        """A load that was decided on as a trial is under way, of so many tokens to be read."""
        self._reads(is_remote).begin_trial(tokens, self._clock())

    def tried_nothing(self, *, is_remote: bool = False) -> None:
        """The trial is over and says nothing: all of it was in host memory, it failed, or nobody
        waited for it any more. The next load is one again.
        """
        self._reads(is_remote).forget_trial()

    def _reads(self, is_remote: bool) -> Reads:
        return self._remote if is_remote else self._local

    def gave_up(self, keys: Iterable[bytes], disk_tokens: int, *, is_remote: bool = False) -> None:
        """A load was given up that these chunks were missing of. If nothing was to be read, they
        were thought to be in host memory, and are not; else what was expected of reading so many
        tokens is refuted, and what is true is not known yet.
        """
        for key in keys:
            self._recent.pop(key, None)
        if disk_tokens:
            self._reads(is_remote).refute(disk_tokens, self._clock())

    def saw_rest(self, tokens: int, seconds: float, *, is_remote: bool = False) -> None:
        """What a directory did for a load that had been given up: as a trial, but of what happened
        to be on its way.
        """
        if tokens > 0 and seconds > 0:
            reads = self._reads(is_remote)
            reads.saw(tokens, seconds, self._clock(), trial=True, is_done=False)

    @property
    def compute_seconds_per_token(self) -> float | None:
        """None before any prefill was seen."""
        return self._prefills.fit()[1] if self._prefills else None

    @property
    def load_seconds_per_token(self) -> float | None:
        """Of long loads from directories; None before any was seen."""
        return self._local.line.fit()[1] if self._local.line else None

    @property
    def remote_seconds_per_token(self) -> float | None:
        """Of long loads from the remote tier; None before any was seen."""
        return self._remote.line.fit()[1] if self._remote.line else None

    # -- what to do --------------------------------------------------------------------------

    def decide(
        self,
        found: Run,
        first_block: int,
        *,
        in_memory: Container[bytes],
        ahead: int,
        backlog: int,
        held: float = 0.0,
        is_remote: Callable[[bytes], bool] = lambda key: False,  # noqa: ARG005
    ) -> Decision:
        """How much of ``found`` to load for a request whose local hit ends before ``first_block``.

        ``in_memory``: chunks that lie in host memory besides those that are thought to. ``ahead``:
        tokens that loads under way have to bring; ``backlog``: tokens that admitted requests have
        to prefill. ``held``: seconds since the request was first told to wait. ``is_remote``:
        whether a chunk is in the remote tier alone.
        """
        if self._policy == "never" or not found:
            return Decision(0, Verdict.COMPUTE)
        everything, memory = self._parts(found, first_block, in_memory)
        keys = found.keys
        local = next((i for i in range(memory.chunks, len(keys)) if is_remote(keys[i])), len(keys))
        all_local = local == len(keys)
        decision = self._decide(
            self._reads(not all_local), everything, memory, found, first_block, ahead, backlog, held
        )
        if all_local or decision.chunks > local or decision.is_trial:
            return replace(decision, is_remote=not all_local)
        # What the directories have of it, up to there, is worth a load of its own.
        nearer = found.first(local)
        if not nearer or local == memory.chunks:
            return replace(decision, is_remote=True)
        parts = self._parts(nearer, first_block, in_memory)
        cut = self._decide(self._local, *parts, nearer, first_block, ahead, backlog, held)
        return cut if cut.verdict is not Verdict.LOAD else replace(cut, verdict=Verdict.CUT)

    def _decide(
        self,
        reads: Reads,
        everything: _Part,
        memory: _Part,
        found: Run,
        first_block: int,
        ahead: int,
        backlog: int,
        held: float,
    ) -> Decision:
        per_token = self.compute_seconds_per_token
        if self._policy == "always" or per_token is None:
            return Decision(everything.chunks, Verdict.LOAD, disk_tokens=everything.disk_tokens)
        computing = per_token * everything.tokens
        if not reads.line:
            if reads.may_try(everything.disk_tokens, self._clock()):
                return self._trial(everything, None, computing)
            is_patient = held < TRIAL_SHARE * computing and not memory.chunks
            if reads.is_trying and everything.disk_tokens and is_patient:
                return Decision(0, Verdict.WAIT)
            return self._from_memory(memory, everything, None, computing)
        start, slope = reads.line.fit()
        loading = start + slope * (ahead + everything.disk_tokens)
        parts = [everything, memory]
        best = self._best(reads, parts, found, first_block, ahead, backlog, per_token)
        if best.chunks < everything.chunks:
            if reads.may_try(everything.disk_tokens, self._clock()):
                return self._trial(everything, loading, computing)
        elif best.disk_tokens:
            reads.pay()
        if not best.disk_tokens:
            return self._from_memory(best, everything, loading, computing)
        expected = start + slope * (ahead + best.disk_tokens)
        within = max(OVERRUN * expected, PATIENT_SHARE * per_token * best.tokens)
        within = min(within, max(per_token * (backlog + best.tokens), expected))
        verdict = Verdict.LOAD if best.chunks == everything.chunks else Verdict.CUT
        worth = per_token * best.tokens
        return Decision(best.chunks, verdict, within, worth, loading, computing, best.disk_tokens)

    def _from_memory(
        self, part: _Part, everything: _Part, loading: float | None, computing: float
    ) -> Decision:
        """What is thought to be in host memory, in little time: it may not be there."""
        if not part.chunks:
            return Decision(0, Verdict.COMPUTE, None, 0.0, loading, computing)
        verdict = Verdict.LOAD if part.chunks == everything.chunks else Verdict.CUT
        worth = computing * part.tokens / everything.tokens
        return Decision(part.chunks, verdict, PATIENT_SHARE * worth, worth, loading, computing)

    def _trial(self, part: _Part, loading: float | None, computing: float) -> Decision:
        return Decision(
            part.chunks,
            Verdict.LOAD,
            TRIAL_SHARE * computing,
            computing,
            loading,
            computing,
            part.disk_tokens,
            is_trial=True,
        )

    def _parts(
        self, found: Run, first_block: int, in_memory: Container[bytes]
    ) -> tuple[_Part, _Part]:
        """All of it, and what leads of it in host memory."""
        keys, recent = found.keys, self._recent
        on_disk = [key not in recent and key not in in_memory for key in keys]
        chunks = on_disk.index(True) if True in on_disk else len(keys)
        memory = self._part(found, first_block, chunks)
        everything = self._part(found, first_block, len(keys))
        everything.disk_tokens = self._chunk_tokens(found, sum(on_disk))
        return everything, memory

    def _part(self, found: Run, first_block: int, chunks: int) -> _Part:
        end = min(found.end, found.begin + chunks * found.blocks_per_chunk)
        return _Part(chunks, max(0, end - first_block) * self._block_tokens, 0)

    def _chunk_tokens(self, found: Run, chunks: int) -> int:
        blocks = min(found.end - found.begin, chunks * found.blocks_per_chunk)
        return blocks * self._block_tokens

    def _best(
        self,
        reads: Reads,
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
        start, slope = reads.line.fit()
        waits = per_token * backlog
        candidates = [everything, memory, _Part(0, 0, 0)]
        if slope > 0 and everything.disk_tokens:
            free = (waits - start) / slope - ahead
            share = min(1.0, max(0.0, free / everything.disk_tokens))
            chunks = int(share * len(found))
            if memory.chunks < chunks < everything.chunks:
                part = self._part(found, first_block, chunks)
                part.disk_tokens = round(share * everything.disk_tokens)
                candidates.insert(1, part)
        for part in candidates:
            loading = start + slope * (ahead + part.disk_tokens) if part.disk_tokens else 0.0
            rest = per_token * (everything.tokens - part.tokens)
            part.seconds = max(loading, waits) + rest
        return min(candidates, key=lambda part: (part.seconds, -part.chunks))
