"""The CUDA device on a real GPU: bytes, and their order against work on the compute stream."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lmkv._C import CompletionKind, Engine, EngineOptions, cuda_status

STATUS = cuda_status()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(STATUS.device_count == 0, reason=f"needs a CUDA device: {STATUS.reason}"),
]

LAYERS = 3
BLOCKS = 64
BLOCKS_PER_CHUNK = 4
# Two bytes short of a multiple of 16, and a typical page.
PAGE_BYTES = [4094, 64 << 10]


class Cache:
    """A paged KV cache of random bytes in GPU memory, and engines over it."""

    def __init__(self, root: Path, page: int, *, blocks_outermost: bool) -> None:
        import torch

        self.root = root
        shape = (BLOCKS, LAYERS, page) if blocks_outermost else (LAYERS, BLOCKS, page)
        self.memory = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda:0")
        # [block, layer, byte], whatever lies outermost
        self.pages = self.memory if blocks_outermost else self.memory.transpose(0, 1)
        torch.cuda.synchronize()

    def engine(self) -> Engine:
        page = self.pages.shape[-1]
        return Engine(
            EngineOptions(
                root=str(self.root),
                namespace=bytes(32),
                rank=0,
                segments=[
                    (self.pages[0, layer].data_ptr(), self.pages.stride(0), page)
                    for layer in range(LAYERS)
                ],
                block_count=BLOCKS,
                block_tokens=16,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
                host_memory=64 << 20,
                device="cuda:0",
            )
        )


def key(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def finish(engine: Engine) -> None:
    assert engine.drain(30)
    for completion in engine.poll():
        assert completion.error == ""
        assert completion.failed_chunks == []


@pytest.mark.parametrize("page", PAGE_BYTES)
@pytest.mark.parametrize("blocks_outermost", [False, True], ids=["layers", "blocks"])
def test_a_fresh_engine_loads_what_another_stored(
    tmp_path: Path, page: int, blocks_outermost: bool
) -> None:
    import torch

    cache = Cache(tmp_path, page, blocks_outermost=blocks_outermost)
    source, target = [7, 3, 60, 0], [20, 10, 11, 12]
    expected = cache.pages[source].clone()
    rest = [block for block in range(BLOCKS) if block not in target]
    untouched = cache.pages[rest].clone()
    engine = cache.engine()
    assert engine.info()["pin_error"] == ""
    stream = torch.cuda.current_stream().cuda_stream
    assert engine.store(key(1), 0, source, stream)
    finish(engine)
    engine.close()

    fresh = cache.engine()
    fresh.load([(key(1), 0, BLOCKS_PER_CHUNK, 0, target)], stream)
    finish(fresh)
    fresh.close()
    assert torch.equal(cache.pages[target], expected)
    assert torch.equal(cache.pages[rest], untouched)


def test_a_gather_waits_for_the_work_that_writes_the_blocks(tmp_path: Path) -> None:
    import torch

    cache = Cache(tmp_path, 64 << 10, blocks_outermost=False)
    source, target = [1, 2, 3, 4], [20, 21, 22, 23]
    engine = cache.engine()
    torch.cuda._sleep(200_000_000)  # keeps the stream busy for about 0.1 s
    cache.memory[:, 1:5] = 42
    assert engine.store(key(1), 0, source, torch.cuda.current_stream().cuda_stream)
    gathered = []
    while not gathered:
        gathered = [c for c in engine.poll() if c.kind == CompletionKind.GATHERED]
    cache.memory[:, 1:5] = 7  # the blocks are free again
    finish(engine)
    engine.load([(key(1), 0, BLOCKS_PER_CHUNK, 0, target)])
    finish(engine)
    engine.close()
    assert bool((cache.pages[target] == 42).all())


def test_a_scatter_waits_for_the_work_that_reads_the_blocks(tmp_path: Path) -> None:
    import torch

    cache = Cache(tmp_path, 64 << 10, blocks_outermost=False)
    engine = cache.engine()
    stream = torch.cuda.current_stream().cuda_stream
    assert engine.store(key(1), 0, [1, 2, 3, 4], stream)
    finish(engine)
    target = [20, 21, 22, 23]
    before = cache.pages[target].clone()
    torch.cuda._sleep(200_000_000)
    read_late = cache.pages[target].clone()
    engine.load([(key(1), 0, BLOCKS_PER_CHUNK, 0, target)], stream)
    finish(engine)
    engine.close()
    assert torch.equal(read_late, before)
    assert torch.equal(cache.pages[target], cache.pages[[1, 2, 3, 4]])
