"""What can go wrong in the demo, as a sentence for the person in front of it."""

from __future__ import annotations


class DemoError(Exception):
    """A failure the user can act on: one sentence, what to do about it, and the evidence.

    `hint`: what to do, or empty. `log`: the last lines an engine wrote, or empty.
    """

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log
