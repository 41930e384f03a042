"""What the connector's two sides tell each other; everything here crosses processes."""

from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from lmkv.config import Config


@dataclass(frozen=True, slots=True)
class RootsOut:
    """Directories, by index, that one rank cannot load from, and that it cannot store to."""

    loads: frozenset[int] = frozenset()
    stores: frozenset[int] = frozenset()


@dataclass(slots=True)
class Hello(KVConnectorHandshakeMetadata):
    """What one worker found out while it started: the namespace, or why it serves nothing.

    ``config`` is what its own process was set to: environments may differ between hosts.
    """

    namespace: bytes
    config: Config
    refusal: str = ""
    roots_out: RootsOut = field(default_factory=RootsOut)
    slabs: int = 0  # chunks that its host memory has room for
    arena_slab_bytes: int = 0  # of the arena that it shares with other engines; 0: it does not


@dataclass(slots=True)
class Store:
    """One chunk to store. ``job`` is the scheduler's number for it, ``used_at`` the time at which
    its request was admitted.
    """

    job: int
    key: bytes
    token_begin: int
    block_ids: list[int]
    used_at: float


@dataclass(slots=True)
class ChunkLoad:
    """One chunk to load: the file holds ``block_count`` blocks, those from ``first_block`` on
    go to ``block_ids``.
    """

    key: bytes
    token_begin: int
    block_count: int
    first_block: int
    block_ids: list[int]

    def as_tuple(self) -> tuple[bytes, int, int, int, list[int]]:
        """What ``lmkv._C.Engine.load`` takes."""
        return self.key, self.token_begin, self.block_count, self.first_block, self.block_ids


@dataclass(slots=True)
class Load:
    """All chunks to load for one request; or none, and the blocks that must be computed because
    nothing could be loaded to them. After ``within`` seconds what is left of it is given up,
    because computing is quicker, unless so much has arrived meanwhile, for this load and others,
    that computing that would have taken longer; ``worth`` is what computing all of it would take.
    """

    request_id: str
    chunks: list[ChunkLoad]
    used_at: float
    within: float | None = None
    worth: float = 0.0
    refused: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Use:
    """Chunks, ``(key, token_begin)``, that a request found in vLLM's own prefix cache: what it
    loads or stores lies behind them.
    """

    chunks: list[tuple[bytes, int]]
    used_at: float


@dataclass
class StepMetadata(KVConnectorMetadata):
    """Scheduler to workers, once a step."""

    loads: list[Load] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    # Requests that ended while their loads are under way: nobody waits for the rest.
    cancelled: list[str] = field(default_factory=list)
    # A number for the step if its time is to be taken, or 0.
    timed: int = 0

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        # It is the same object in the workers' processes.
        return "NOTHING" if self is NOTHING else super().__reduce_ex__(protocol)


# What most steps have to tell the workers. Never changed.
NOTHING = StepMetadata()


def _seconds_per_token(read: tuple[int, float, bool]) -> float:
    tokens, seconds, _ = read
    return seconds / tokens if tokens else 0.0


@dataclass
class StepReport(KVConnectorWorkerMetadata):
    """Workers to scheduler, at most once a step; counts are numbers of ranks."""

    hellos: dict[int, Hello] = field(default_factory=dict)
    # Store jobs whose source blocks nothing reads any more.
    gathered: dict[int, int] = field(default_factory=dict)
    # Store jobs that ended, and those among them that left no file.
    ended: dict[int, int] = field(default_factory=dict)
    unstored: set[int] = field(default_factory=set)
    # Indices, in Load.chunks, of chunks that did not arrive.
    failed_chunks: dict[str, set[int]] = field(default_factory=dict)
    # What the loads that ended took, in seconds; the slowest rank's. And the indices, in
    # Load.chunks, of what came from host memory on all ranks.
    load_seconds: dict[str, float] = field(default_factory=dict)
    memory_chunks: dict[str, set[int]] = field(default_factory=dict)
    # Indices of what was given up because its time was over; among the failed chunks, too.
    late: dict[str, set[int]] = field(default_factory=dict)
    # Requests whose loads the remote tier had a part in.
    read_remotely: set[str] = field(default_factory=set)
    # How fast tiers were while that was still being read: tokens, seconds, and whether most came
    # from the remote one.
    read_after: tuple[int, float, bool] = (0, 0.0, False)
    # Keys of chunks that were evicted, on whatever rank.
    evicted: set[bytes] = field(default_factory=set)
    # By rank, where it has changed.
    roots_out: dict[int, RootsOut] = field(default_factory=dict)
    # StepMetadata.timed of the step.
    timed: int = 0

    def __bool__(self) -> bool:
        return bool(
            self.hellos
            or self.gathered
            or self.ended
            or self.failed_chunks
            or self.load_seconds
            or self.evicted
            or self.read_after[0]
            or self.roots_out
            or self.timed
        )

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReport":
        """Add another rank's report of the same step to this one."""
        assert isinstance(other, StepReport)
        self.hellos.update(other.hellos)
        self.roots_out.update(other.roots_out)
        for counts, more in ((self.gathered, other.gathered), (self.ended, other.ended)):
            for job, count in more.items():
                counts[job] = counts.get(job, 0) + count
        self.unstored |= other.unstored
        for request_id, indices in other.late.items():
            self.late.setdefault(request_id, set()).update(indices)
        self.read_after = max(self.read_after, other.read_after, key=_seconds_per_token)
        self.evicted |= other.evicted
        self.read_remotely |= other.read_remotely
        for request_id, chunks in other.memory_chunks.items():
            self.memory_chunks[request_id] = chunks & self.memory_chunks.get(request_id, chunks)
        for request_id, seconds in other.load_seconds.items():
            self.load_seconds[request_id] = max(seconds, self.load_seconds.get(request_id, 0.0))
        self.timed = max(self.timed, other.timed)
        for request_id, indices in other.failed_chunks.items():
            self.failed_chunks.setdefault(request_id, set()).update(indices)
        return self
