"""Daemon threads that wait without the GIL are ended before the interpreter is: one that asked for
the GIL back later would end the process.
"""

import atexit
import weakref
from typing import Protocol


class Ends(Protocol):
    """What has such threads."""

    def end(self) -> None:
        """End them; waits for them for a moment."""


_running: "weakref.WeakSet[Ends]" = weakref.WeakSet()


def end_at_exit(one: Ends) -> None:
    """Call its ``end`` when the interpreter ends, if it is still there."""
    _running.add(one)


@atexit.register
def _end_all() -> None:
    for one in list(_running):
        one.end()
