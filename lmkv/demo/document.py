"""The text that is asked about, and the question."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lmkv.demo.errors import DemoError

DEFAULT_QUESTION = "Does lmkv change the answers?"
"""One that a model of 135 million parameters answers from the guide, and rightly."""

SHIPPED = {
    "guide.md": DEFAULT_QUESTION,
    "lighthouse.md": "When was the lamp lit for the first time?",
    "handbook.md": "How many days of leave does a new employee have?",
}
"""The documents that come with the demo, and a question about each."""

_GUIDE = "guide.md"
_MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Document:
    """`name` is for people: a file name."""

    name: str
    text: str

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat that asks `question`: what is common first, what varies last."""
        content = f"{self.text.strip()}\n\nQuestion: {question}\nAnswer:"
        return [{"role": "user", "content": content}]


def shipped(name: str = _GUIDE) -> Document:
    """One of the `SHIPPED` documents; without a name the user guide of lmkv itself."""
    file = resources.files("lmkv.demo") / "documents" / name
    return Document(name, file.read_text(encoding="utf-8"))


def load(path: Path | None) -> Document:
    """The text file at `path`, or the shipped guide; raises `DemoError`."""
    if path is None:
        return shipped()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DemoError(f"{path} is larger than {_MAX_BYTES >> 20} MiB", hint="give a text")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DemoError(f"cannot read the document {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DemoError(f"{path} is no text", hint="give a text file in UTF-8") from None
    if not text.strip():
        raise DemoError(f"{path} is empty")
    return Document(path.name, text)
