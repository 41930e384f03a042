"""Telling models apart by their weights, without reading all of them."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth"})
_SAMPLE_BYTES = 4096

# Safetensors: tensors up to this size are read whole (a norm's weights say more than their
# bytes), and at most so many reads are made of all files together.
_WHOLE_BYTES = 64 << 10
_MOST_READS = 20_000
_MOST_HEADER_BYTES = 100 << 20  # the format's own limit

# Other formats: samples over all files together, and the least and the most of one file.
_SAMPLES, _LEAST_SAMPLES, _MOST_SAMPLES = 2048, 16, 256


@dataclass(frozen=True, slots=True)
class _Piece:
    offset: int
    size: int


def weights_id(path: Path) -> str:
    """64 hex digits that tell apart the weights under ``path``; "" if there are none.

    ``path`` is a model directory or one weights file. What goes in: each file's size; of a
    safetensors file its header, small tensors whole and 4 KiB from the middle of every other
    one; of any other file bytes sampled evenly over it; and the contents of ``config.json``.
    Two fine-tunes under one path differ, a copy on another machine does not. Blocks on the
    disk: at most 20,000 reads for safetensors (every n-th piece, where there are more), about
    2048 or 16 a file for others. Raises OSError.
    """
    files = [path] if path.is_file() else _weight_files(path)
    if not files:
        return ""
    headers = {file: header for file in files if (header := _safetensors_header(file))}
    pieces = {file: list(_tensor_pieces(header)) for file, header in headers.items()}
    step = -(-sum(map(len, pieces.values())) // _MOST_READS) or 1
    samples = min(max(_SAMPLES // len(files), _LEAST_SAMPLES), _MOST_SAMPLES)
    digest = hashlib.sha256()
    for file in files:
        name = file.name if path.is_dir() else "weights"
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        if file in headers:
            digest.update(hashlib.sha256(headers[file]).digest())
            digest.update(_digest(file, pieces[file][::step]))
        else:
            digest.update(_digest(file, _even_pieces(size, samples)))
    config = path / "config.json"
    if config.is_file():
        digest.update(hashlib.sha256(config.read_bytes()).digest())
    return digest.hexdigest()


def _weight_files(directory: Path) -> list[Path]:
    found = (file for file in directory.iterdir() if file.suffix in _SUFFIXES)
    return sorted(file for file in found if file.is_file())


def _safetensors_header(file: Path) -> bytes:
    """The length field and the JSON of a safetensors file's header; b"" if it is none."""
    if file.suffix != ".safetensors":
        return b""
    with open(file, "rb") as source:
        length = source.read(8)
        size = int.from_bytes(length, "little")
        if len(length) < 8 or size > _MOST_HEADER_BYTES:
            return b""
        header = source.read(size)
    try:
        list(_tensor_pieces(length + header))
    except (ValueError, TypeError, KeyError, AttributeError):
        return b""
    return length + header


def _tensor_pieces(header: bytes) -> Iterator[_Piece]:
    """What to read of each tensor, in the order of the file."""
    tensors = json.loads(header[8:])
    tensors.pop("__metadata__", None)
    for begin, end in sorted(tensor["data_offsets"] for tensor in tensors.values()):
        offset, size = len(header) + begin, end - begin
        if size <= _WHOLE_BYTES:
            yield _Piece(offset, size)
        else:
            yield _Piece(offset + (size - _SAMPLE_BYTES) // 2, _SAMPLE_BYTES)


def _even_pieces(size: int, count: int) -> Iterator[_Piece]:
    """``count`` pieces, the first and the last bytes among them."""
    last = max(size - _SAMPLE_BYTES, 0)
    for index in range(count):
        yield _Piece(last * index // (count - 1), _SAMPLE_BYTES)


def _digest(file: Path, pieces: Iterator[_Piece] | list[_Piece]) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as source:
        for piece in pieces:
            digest.update(os.pread(source.fileno(), piece.size, piece.offset))
    return digest.digest()
