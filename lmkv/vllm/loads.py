"""What is being loaded for which request, from its admission until all ranks are done."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from lmkv.vllm.groups import Groups
from lmkv.vllm.lookup import Run
from lmkv.vllm.metadata import ChunkLoad, Load, StepReport
from lmkv.vllm.pace import Decision, Verdict


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to one waiting request, for a local hit of ``first_block`` blocks.

    ``chunks`` are those that were found until it is decided how many of them are loaded, and then
    these.
    """

    first_block: int
    chunks: Run
    at: float
    decision: Decision | None = None

    @property
    def blocks(self) -> int:
        """Blocks that the request gains."""
        return self.chunks.end - self.first_block if self.chunks else 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one load: tokens that arrived and that did not, keys that arrived and that
    failed.

    ``late``: keys of the rest, of which nothing is known, and that was given up because it took too
    long. ``disk_tokens``: that were expected to be read.
    ``seconds``: what it took, 0 if that is not known, for ``tokens_read``, those ahead of it
    included. ``tokens_from_memory``: of ``gained``.
    """

    gained: int
    lost: int
    keys: list[bytes]
    failed: list[bytes]
    late: list[bytes] = field(default_factory=list)
    disk_tokens: int = 0
    seconds: float = 0.0
    tokens_from_memory: int = 0
    tokens_read: int = 0
    is_trial: bool = False
    is_remote: bool = False  # as of the decision
    read_remotely: bool = False  # some of it really was


@dataclass(slots=True)
class _Loading:
    keys: list[bytes]
    # Tokens that the request gains if the chunks up to each have arrived, and no more. With several
    # groups vLLM discards a load that is not whole: nothing, but for the last.
    tokens: list[int]
    blocks: list[int]  # that each chunk brings
    failed: set[int]
    decision: Decision
    ahead: int = 0  # tokens that other loads had to bring when it began
    cancelled: bool = False
    late: set[int] = field(default_factory=set)
    seconds: float = 0.0
    memory: set[int] | None = None  # chunks that came from host memory; None if nothing was said
    remotely: bool = False  # the remote tier brought some, on any rank

    def tokens_of(self, chunks: Iterable[int]) -> int:
        """These chunks' part of all tokens, by their blocks: of several groups each has some."""
        return round(self.tokens[-1] * sum(self.blocks[i] for i in chunks) / sum(self.blocks))


class Loads:
    """See the module. Scheduler thread only."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._tokens_under_way = 0
        self._loading: dict[str, _Loading] = {}
        self._keys: set[bytes] = set()
        self._new: list[Load] = []
        self._cancelled: list[str] = []

    @property
    def tokens_under_way(self) -> int:
        """Tokens that are to be read from the directory for the loads that there are."""
        return self._tokens_under_way

    def __bool__(self) -> bool:
        return bool(self._loading)

    def requests(self) -> AbstractSet[str]:
        """Those whose loads are under way."""
        return self._loading.keys()

    def has_any(self, chunks: Run) -> bool:
        """Whether any of ``chunks`` is being loaded."""
        return bool(self._keys) and not self._keys.isdisjoint(chunks.keys)

    def begin(
        self,
        request_id: str,
        found: Found,
        groups: Groups,
        block_ids: Sequence[Sequence[int]],
        used_at: float,
    ) -> None:
        """Load what was found to all of the request's first blocks, ``block_ids`` of each group,
        that are behind its local hit. ``used_at``: when the request was admitted, as of
        ``time.time()``.
        """
        chunks, tokens = [], []
        for group in groups:
            ids = block_ids[group.index]
            for piece in group.pieces(found.chunks, found.first_block):
                end = min(piece.end, len(ids))
                if piece.first >= end:
                    break
                chunks.append(
                    ChunkLoad(
                        piece.key,
                        piece.begin * self._block_tokens,
                        piece.end - piece.begin,
                        piece.first - piece.begin,
                        list(ids[piece.first : end]),
                    )
                )
                tokens.append((end - found.first_block) * self._block_tokens)
        if len(groups) > 1:
            tokens[:-1] = [0] * (len(tokens) - 1)
        keys = [chunk.key for chunk in chunks]
        assert found.decision is not None, "a load that was not decided on"
        self._loading[request_id] = _Loading(
            keys,
            tokens,
            [len(chunk.block_ids) for chunk in chunks],
            set(),
            found.decision,
            self._tokens_under_way,
        )
        self._tokens_under_way += found.decision.disk_tokens
        self._keys.update(keys)
        within, worth = found.decision.within, found.decision.worth
        self._new.append(Load(request_id, chunks, used_at, within, worth))

    def refuse(self, request_id: str, tokens: int, block_ids: list[int]) -> None:
        """Have a load fail at once, so that vLLM computes what these blocks are to hold."""
        nothing = Decision(0, Verdict.COMPUTE)
        self._loading[request_id] = _Loading([], [tokens], [], {0}, nothing)
        self._new.append(Load(request_id, [], 0.0, refused=block_ids))

    def take_new(self) -> list[Load]:
        """The loads since the last call, for the workers."""
        new, self._new = self._new, []
        return new

    def cancel(self, request_id: str) -> None:
        """Nobody waits for this load any more. It ends all the same; nothing of it counts."""
        if loading := self._loading.get(request_id):
            loading.cancelled = True
            self._cancelled.append(request_id)

    def take_cancelled(self) -> list[str]:
        """The requests whose loads were cancelled since the last call, for the workers."""
        cancelled, self._cancelled = self._cancelled, []
        return cancelled

    def note_ended(self, report: StepReport) -> None:
        """What loads took on the ranks that are done with them, what came from host memory, and
        which were given up in part because their time was over.
        """
        for request_id, taken in report.load_seconds.items():
            if loading := self._loading.get(request_id):
                loading.seconds = max(loading.seconds, taken)
                loading.late |= report.late.get(request_id, set())
                loading.remotely |= request_id in report.read_remotely
                memory = report.memory_chunks.get(request_id, set())
                loading.memory = memory if loading.memory is None else loading.memory & memory

    def note_failed(self, failed_chunks: Mapping[str, set[int]]) -> None:
        """Ranks could not load these chunks, by index; the loads have not ended yet.

        Of a cancelled load they may just not have come: nothing is known of them.
        """
        for request_id, indices in failed_chunks.items():
            loading = self._loading.get(request_id)
            if loading is not None and not loading.cancelled:
                loading.failed |= indices

    def end(self, request_id: str) -> Outcome | None:
        """All ranks are done with a request's load; None if there was none."""
        loading = self._loading.pop(request_id, None)
        if loading is None:
            return None
        self._keys.difference_update(loading.keys)
        self._tokens_under_way -= loading.decision.disk_tokens
        first_failed = min(loading.failed, default=len(loading.tokens))
        gained = loading.tokens[first_failed - 1] if first_failed else 0
        known = loading.failed - loading.late
        failed = [key for index, key in enumerate(loading.keys) if index in known]
        if loading.cancelled:
            return Outcome(
                0,
                0,
                [],
                failed,
                is_trial=loading.decision.is_trial,
                is_remote=loading.decision.is_remote,
            )
        arrived = [index for index in range(len(loading.keys)) if index not in loading.failed]
        memory = loading.memory or set()
        read = [index for index in arrived if index not in memory]
        from_memory = [index for index in memory if index < first_failed]
        return Outcome(
            gained,
            loading.tokens[-1] - gained,
            [loading.keys[index] for index in arrived],
            failed,
            [loading.keys[index] for index in sorted(loading.late)],
            loading.decision.disk_tokens,
            seconds=loading.seconds,
            tokens_from_memory=loading.tokens_of(from_memory) if gained and from_memory else 0,
            tokens_read=loading.ahead + loading.tokens_of(read) if read else 0,
            is_trial=loading.decision.is_trial,
            is_remote=loading.decision.is_remote,
            read_remotely=loading.remotely,
        )
