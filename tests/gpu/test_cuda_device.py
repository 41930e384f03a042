"""The device on a real GPU: bytes in every layout and mode, and their order against the compute
stream. What needs no stream runs on the host device too, so that these tests are tested everywhere.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmkv._C import (
    CompletionKind,
    Engine,
    EngineOptions,
    TransferBench,
    TransferOptions,
    cuda_status,
)

torch = pytest.importorskip("torch", reason="needs torch, for tensors on the GPU")

STATUS = cuda_status()
REASON = f"needs a CUDA device: {STATUS.reason}"
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(STATUS.device_count == 0, reason=REASON)]
on_gpu = pytest.param("cuda:0", marks=needs_gpu)

LAYERS = 3
BLOCKS = 64
BLOCKS_PER_CHUNK = 4
# Two bytes short of a multiple of 16, a small page, and a typical one.
PAGE_BYTES = [4094, 8 << 10, 64 << 10]
MODES = ["auto", "copy_engine", "kernel_staged", "kernel_mapped"]
LAYOUTS = ["LBNHC", "LBHNC", "BLNHC", "BLHNC"]  # to bytes, N and H are one


class Cache:
    """A paged KV cache of random bytes on a device, and engines over it."""

    def __init__(self, device: str, page: int, layout: str, padding: int = 0) -> None:
        self.device = device
        outer = (LAYERS, BLOCKS) if layout.startswith("LB") else (BLOCKS, LAYERS)
        where = "cpu" if device == "host" else device
        shape = (*outer, page + padding)
        self.memory: Any = torch.randint(0, 256, shape, dtype=torch.uint8, device=where)
        pages = self.memory[..., :page]
        # [block, layer, byte], whatever lies outermost
        self.pages: Any = pages.transpose(0, 1) if layout.startswith("LB") else pages
        self.wait()

    def wait(self) -> None:
        if self.device != "host":
            torch.cuda.synchronize()

    def stream(self) -> int:
        return 0 if self.device == "host" else int(torch.cuda.current_stream().cuda_stream)

    def segments(self) -> list[tuple[int, int, int]]:
        page, stride = self.pages.shape[-1], self.pages.stride(0)
        return [(self.pages[0, layer].data_ptr(), stride, page) for layer in range(LAYERS)]

    def engine(self, root: Path, mode: str = "auto") -> Engine:
        return Engine(
            EngineOptions(
                root=str(root),
                namespace=bytes(32),
                rank=0,
                segments=self.segments(),
                block_count=BLOCKS,
                block_tokens=16,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
                host_memory=64 << 20,
                device=self.device,
                transfer=TransferOptions(mode=mode, staging_bytes=256 << 10),
            )
        )


def key(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def finish(engine: Engine) -> None:
    assert engine.drain(30)
    for completion in engine.poll():
        assert completion.error == ""
        assert completion.failed_chunks == []


@pytest.mark.parametrize("device", ["host", on_gpu])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page", PAGE_BYTES)
@pytest.mark.parametrize("padding", [0, 18])
def test_a_fresh_engine_loads_what_another_stored(
    tmp_path: Path, device: str, mode: str, layout: str, page: int, padding: int
) -> None:
    cache = Cache(device, page, layout, padding)
    source, target = [7, 3, 60, 0], [20, 10, 11, 12]
    expected = cache.memory.clone()
    pages = expected[..., :page]
    pages = pages.transpose(0, 1) if layout.startswith("LB") else pages
    pages[target] = pages[source]
    engine = cache.engine(tmp_path, mode)
    assert engine.info()["pin_error"] == ""
    if device != "host" and mode != "auto":
        assert (engine.info()["gather"], engine.info()["scatter"]) == (mode, mode)
    assert engine.store(key(1), 0, source, cache.stream())
    finish(engine)
    engine.close()

    fresh = cache.engine(tmp_path, mode)
    fresh.load([(key(1), 0, BLOCKS_PER_CHUNK, 0, target)], cache.stream())
    finish(fresh)
    fresh.close()
    cache.wait()
    assert torch.equal(cache.memory, expected)  # paddings and all other blocks included


@pytest.mark.parametrize("device", ["host", on_gpu])
@pytest.mark.parametrize("mode", MODES[1:])
def test_many_transfers_at_once_do_not_mix(device: str, mode: str) -> None:
    cache = Cache(device, 4096, "LBNHC")
    block = LAYERS * 4096
    bench = TransferBench(
        device=device,
        segments=cache.segments(),
        host_bytes=BLOCKS * block,
        transfer=TransferOptions(mode=mode, staging_bytes=5 * block),
    )
    for seed in range(20):
        order = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(seed)).tolist()
        chunks = [order[at : at + 7] for at in range(0, BLOCKS, 7)]
        before = cache.pages.clone()
        if device != "host":
            torch.cuda._sleep(3_000_000)  # the compute stream is busy, and writes to all blocks
            before = cache.pages.add_(seed + 1).clone()
        bench.run("gather", chunks, cache.stream())
        bench.run("scatter", [[BLOCKS - 1 - b for b in chunk] for chunk in chunks], cache.stream())
        cache.wait()
        assert torch.equal(cache.pages, before.flip(0))


@pytest.mark.parametrize("device", [on_gpu])
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_gather_waits_for_the_work_that_writes_the_blocks(
    tmp_path: Path, device: str, mode: str
) -> None:
    cache = Cache(device, 64 << 10, "LBNHC")
    source, target = [1, 2, 3, 4], [20, 21, 22, 23]
    engine = cache.engine(tmp_path, mode)
    torch.cuda._sleep(200_000_000)  # keeps the stream busy for about 0.1 s
    cache.memory[:, 1:5] = 42
    busy = torch.cuda.Event()
    busy.record()
    assert engine.store(key(1), 0, source, cache.stream())
    assert not busy.query(), "the forward pass was over before the gather was queued"
    gathered: list[Any] = []
    while not gathered:
        gathered = [c for c in engine.poll() if c.kind == CompletionKind.GATHERED]
    cache.memory[:, 1:5] = 7  # the blocks are free again
    finish(engine)
    engine.load([(key(1), 0, BLOCKS_PER_CHUNK, 0, target)])
    finish(engine)
    engine.close()
    assert bool((cache.pages[target] == 42).all())


@pytest.mark.parametrize("device", [on_gpu])
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_scatter_waits_for_the_work_that_reads_the_blocks(
    tmp_path: Path, device: str, mode: str
) -> None:
    cache = Cache(device, 64 << 10, "LBNHC")
    engine = cache.engine(tmp_path, mode)
    assert engine.store(key(1), 0, [1, 2, 3, 4], cache.stream())
    finish(engine)
    # Slices: a list of indices would be copied to the GPU, and that waits for the stream.
    before, source = cache.pages[20:24].clone(), cache.pages[1:5].clone()
    cache.wait()
    torch.cuda._sleep(200_000_000)
    read_late = cache.pages[20:24].clone()
    busy = torch.cuda.Event()
    busy.record()
    engine.load([(key(1), 0, BLOCKS_PER_CHUNK, 0, [20, 21, 22, 23])], cache.stream())
    assert not busy.query(), "the forward pass was over before the load was queued"
    finish(engine)
    engine.close()
    cache.wait()
    assert torch.equal(read_late, before)
    assert torch.equal(cache.pages[20:24], source)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(STATUS.device_count == 0, reason=REASON)
@pytest.mark.skipif(
    shutil.which("compute-sanitizer") is None, reason="needs a GPU with compute-sanitizer"
)
def test_compute_sanitizer_finds_nothing() -> None:
    command = [
        "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "66",
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__,
        "-k", "many_transfers and cuda",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
