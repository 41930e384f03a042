"""Which chunks can be loaded without the directory."""

from collections.abc import Container, Sequence

from lmkv._C import ArenaView


class Memory:
    """Chunks on their way to the directory, and those in host memory that all engines of the node
    share. Scheduler thread only; a call takes microseconds.
    """

    def __init__(self, under_way: Container[bytes] = (), arena: ArenaView | None = None) -> None:
        """``under_way``: chunks that this engine stores."""
        self._under_way = under_way
        self._arena = arena

    @property
    def is_shared(self) -> bool:
        """Whether other engines' chunks are among them."""
        return self._arena is not None

    def leading(self, keys: Sequence[bytes]) -> int:
        """How many of ``keys``, one after the other, some engine of the node has."""
        return self._arena.leading(keys) if self._arena is not None and keys else 0

    def among(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of ``keys`` that can be loaded at once."""
        found = {key for key in keys if key in self._under_way}
        if self._arena is not None and keys:
            there = self._arena.present(keys)
            found.update(key for key, is_there in zip(keys, there, strict=True) if is_there)
        return found

    def __contains__(self, key: object) -> bool:
        """Whether it can be loaded at once."""
        return key in self._under_way or (self._arena is not None and key in self._arena)
