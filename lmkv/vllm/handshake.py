"""What the workers find out at start, and whether all of it goes together."""

from collections.abc import Mapping

from lmkv.config import Config
from lmkv.vllm.metadata import Hello, RootsOut


class Handshake:
    """All ranks' hellos, and the directories that any of them cannot use. Scheduler thread only."""

    def __init__(self, config: Config, ranks: int) -> None:
        """``config``: the scheduler's own settings."""
        self._config = config
        self._ranks = ranks
        self._hellos: dict[int, Hello] = {}
        self._roots_out: dict[int, RootsOut] = {}  # by rank

    def greet(self, hellos: Mapping[int, Hello]) -> None:
        """Workers' findings, by rank."""
        self._hellos.update(hellos)
        self._roots_out.update((rank, hello.roots_out) for rank, hello in hellos.items())

    @property
    def is_complete(self) -> bool:
        """Whether every rank has said hello."""
        return len(self._hellos) >= self._ranks

    @property
    def problem(self) -> str:
        """Why these workers cannot be served; "" if they can."""
        for rank, hello in sorted(self._hellos.items()):
            if differences := hello.config.differences(self._config):
                return (
                    "a worker's settings differ from the scheduler's "
                    f"(rank {rank} has {'; '.join(differences)})"
                )
        if refusals := {hello.refusal for hello in self._hellos.values() if hello.refusal}:
            return "; ".join(sorted(refusals))
        if len({hello.namespace for hello in self._hellos.values()}) > 1:
            return "the ranks differ in what their KV is made of"
        return ""

    @property
    def namespace(self) -> bytes:
        """Of all ranks, where there is no ``problem``."""
        return next(iter(self._hellos.values())).namespace

    @property
    def slabs(self) -> int:
        """Of the rank that has the fewest."""
        return min(hello.slabs for hello in self._hellos.values())

    @property
    def arena_slab_bytes(self) -> int:
        """Of the arena that all ranks share; 0 where there is none, or not one for all."""
        sizes = {hello.arena_slab_bytes for hello in self._hellos.values()}
        return sizes.pop() if len(sizes) == 1 else 0

    def note_roots(self, out: Mapping[int, RootsOut]) -> None:
        """Directories went out of service, or came back; by rank."""
        self._roots_out.update(out)

    def roots_out(self) -> RootsOut:
        """What is out of service for any rank."""
        return RootsOut(
            frozenset().union(*(out.loads for out in self._roots_out.values())),
            frozenset().union(*(out.stores for out in self._roots_out.values())),
        )
