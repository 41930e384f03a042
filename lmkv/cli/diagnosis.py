"""What ``lmkv doctor`` has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Diagnosis:
    """``problems`` make lmkv unusable; ``notes`` cost speed or a feature. ``namespaces`` are those
    that were found, ``pairs`` of them do not share, for the reasons that each has.
    """

    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    namespaces: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.problems

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
