"""Which directories are out of service, as one worker's engine sees it, and what is said of it."""

from collections.abc import Callable, Mapping, Sequence

from vllm.logger import init_logger

from lmkv.vllm.activity import Throttle
from lmkv.vllm.metadata import RootsOut

logger = init_logger("vllm.lmkv")

_CONSEQUENCES = {
    "loads": "what is there is computed until it answers again",
    "stores": "what belongs there is not stored until it takes it again",
}


class RootWatch:
    """Says once what goes out of service and what is back. A directory that goes out again and
    again is spoken of once a minute. Worker thread only.
    """

    def __init__(
        self,
        paths: Sequence[str],
        rank: int,
        throttle: Callable[[], Throttle] = Throttle,
        remote: str = "",
    ) -> None:
        """``remote``: the tier that counts as one more directory, if there is one."""
        self._paths = (*paths, remote) if remote else paths
        self._rank = rank
        self._left_out: set[int] = set()
        self._lines = {(root, what): throttle() for root in self._all() for what in _CONSEQUENCES}
        self._out: dict[tuple[int, str], bool] = {}  # and whether it was said

    def _all(self) -> range:
        return range(len(self._paths))

    def left_out(self, info: Mapping[str, str]) -> set[int]:
        """Take in, from the engine's ``info`` at start, what cannot be used; their indices."""
        for root in self._all():
            if error := info.get(f"root{root}_error"):
                self._left_out.add(root)
                logger.warning(
                    "lmkv: rank %d: %s cannot be used and is left out until the engine is started "
                    "again: what belongs there is computed and not stored: %s",
                    self._rank,
                    self._paths[root],
                    error,
                )
        return self._left_out

    def update(self, info: Mapping[str, str]) -> RootsOut:
        """Take in the engine's ``info``; what is out of service now."""
        for (root, what), line in self._lines.items():
            reason = info.get(f"root{root}_{what}_out")
            if reason and (root, what) not in self._out:
                said = self._out[root, what] = line.passes()
                if said:
                    logger.warning(
                        "lmkv: rank %d: %s is out of service for %s: %s; %s",
                        self._rank,
                        self._paths[root],
                        what,
                        reason,
                        _CONSEQUENCES[what],
                    )
            elif not reason and self._out.pop((root, what), False):
                logger.info(
                    "lmkv: rank %d: %s is back in service for %s",
                    self._rank,
                    self._paths[root],
                    what,
                )
        return RootsOut(self._of("loads"), self._of("stores"))

    def _of(self, direction: str) -> frozenset[int]:
        return frozenset(self._left_out | {root for root, what in self._out if what == direction})
