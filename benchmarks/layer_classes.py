"""How ``storage_layers.py`` drives each storage layer: from host memory to files and back."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

CHUNK_TOKENS = 256  # lmkv's default and LMCache's
BLOCK_TOKENS = 32  # vLLM's, on a CPU
CHUNK_BLOCKS = CHUNK_TOKENS // BLOCK_TOKENS
LONGEST_SECONDS = 60.0
LOOK_SECONDS = 0.0005  # between looks whether it is done, of every layer

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Size:
    """Of a document: whole chunks."""

    tokens: int
    token_bytes: int

    @property
    def chunks(self) -> int:
        return self.tokens // CHUNK_TOKENS

    @property
    def blocks(self) -> int:
        return self.tokens // BLOCK_TOKENS

    @property
    def block_bytes(self) -> int:
        return BLOCK_TOKENS * self.token_bytes

    @property
    def bytes_total(self) -> int:
        return self.tokens * self.token_bytes

    @property
    def host_memory(self) -> int:
        """Of a layer that is told how much it may have."""
        return max(256 << 20, 4 * self.bytes_total)


class Layer(Protocol):
    """With host memory for what it stores, and for what it loads."""

    def fill(self, document: Bytes) -> None:
        """With what is stored next; of what was loaded before nothing is left in memory."""

    def store(self, name: str) -> None:
        """All of it, under keys made of ``name``, until the layer says that it is stored."""

    def load(self, name: str) -> None:
        """What was stored as ``name``, until it is in memory."""

    def loaded(self) -> list[Bytes]:
        """That; nothing of a layer that shows it to nobody."""


def wait_until(is_done: Callable[[], bool]) -> None:
    """Look now and then. Raises TimeoutError."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done in {LONGEST_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)


def digests(name: str, count: int) -> list[bytes]:
    """A key of 32 bytes for each unit."""
    return [hashlib.sha256(f"{name} {index}".encode()).digest() for index in range(count)]


class Lmkv:
    """Two engines that share a directory and nothing else: the second has never seen what it loads.

    With copies: from blocks of a KV cache in host memory to a slab, and back, once what was read is
    verified. Without, as ``lmkv bench io``: from the slab, to the slab.
    """

    def __init__(self, folder: Path, size: Size, *, has_copies: bool) -> None:
        from lmkv import _C

        make = _C.Engine if has_copies else _C.bench_engine
        self._size, self._has_copies, self._kinds = size, has_copies, _C.CompletionKind
        self._memory = np.frombuffer(mmap.mmap(-1, 2 * size.bytes_total), np.uint8)
        options = _C.EngineOptions(
            root=str(folder),
            namespace=bytes(32),
            rank=0,
            segments=[(self._memory.ctypes.data, size.block_bytes, size.block_bytes)],
            block_count=2 * size.blocks,
            block_tokens=BLOCK_TOKENS,
            blocks_per_chunk=CHUNK_BLOCKS,
            host_memory=size.host_memory,
            free_space_floor=0,
        )
        self._writer, self._reader = (make(options) for _ in range(2))
        both = (self._writer, self._reader)  # have looked at the directory for the first time
        wait_until(lambda: all(engine.stats()["housekeeping_passes"] for engine in both))

    def fill(self, document: Bytes) -> None:
        half = self._size.bytes_total
        self._memory[:half], self._memory[half:] = document, 0

    def store(self, name: str) -> None:
        for index, key in enumerate(digests(name, self._size.chunks)):
            blocks = range(index * CHUNK_BLOCKS, (index + 1) * CHUNK_BLOCKS)
            if not self._writer.store(key, index * CHUNK_TOKENS, list(blocks)):
                raise RuntimeError("a store was dropped")
        self._wait(self._writer, self._kinds.STORED, self._size.chunks)

    def load(self, name: str) -> None:
        chunks = []
        for index, key in enumerate(digests(name, self._size.chunks)):
            begin = self._size.blocks + index * CHUNK_BLOCKS
            blocks = list(range(begin, begin + CHUNK_BLOCKS))
            chunks.append((key, index * CHUNK_TOKENS, CHUNK_BLOCKS, 0, blocks))
        self._reader.load(chunks)
        self._wait(self._reader, self._kinds.LOADED, 1)
        if self._reader.stats()["memory_hits"]:
            raise RuntimeError("a chunk was in memory: nothing was measured")

    def loaded(self) -> list[Bytes]:
        return [self._memory[self._size.bytes_total :]] if self._has_copies else []

    @staticmethod
    def _wait(engine: Any, kind: Any, count: int) -> None:
        ended = 0

        def is_done() -> bool:
            nonlocal ended
            for completion in engine.poll():
                if completion.error:
                    raise RuntimeError(completion.error)
                ended += completion.kind is kind
            return ended == count

        wait_until(is_done)


class VllmFs:
    """vLLM's fs tier, made by its TieringOffloadingSpec over the rows of its CPU cache; half of
    them are for what is loaded.
    """

    def __init__(self, folder: Path, size: Size, *, blocks_per_job: int = 0) -> None:
        """``blocks_per_job``: 0 is all of a document, as TieringOffloadingManager has it."""
        from vllm.v1.kv_offload.base import ReqContext, make_offload_key
        from vllm.v1.kv_offload.config import (
            OffloadingCacheConfig,
            OffloadingConfig,
            OffloadingGroupConfig,
            OffloadingModelConfig,
            OffloadingParallelConfig,
        )
        from vllm.v1.kv_offload.tiering.base import TransferJob
        from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

        self._size, self._blocks_per_job = size, blocks_per_job or size.blocks
        self._make_key, self._make_job, self._make_request = (
            make_offload_key, TransferJob, ReqContext,
        )  # fmt: skip
        self._jobs = itertools.count()
        engine_id = f"lmkv-layers-{os.getpid()}-{id(self)}"
        config = OffloadingConfig(
            groups=(OffloadingGroupConfig(BLOCK_TOKENS, ("layers.0.attn",), 0),),
            worker_kv_bytes_per_block=size.block_bytes,
            enable_kv_cache_events=False,
            extra_config={
                "cpu_bytes_to_use": 2 * size.bytes_total,
                "secondary_tiers": [{"type": "fs", "root_dir": str(folder)}],
            },
            engine_id=engine_id,
            model=OffloadingModelConfig("SmolLM2-135M", "float32"),
            cache=OffloadingCacheConfig(tokens_per_hash=BLOCK_TOKENS, blocks_per_chunk=1),
            parallel=OffloadingParallelConfig(
                rank=0, world_size=1, tp_size=1, pp_size=1, pcp_size=1, dcp_size=1,
                data_parallel_index=0, data_parallel_size=1, data_parallel_rank_local=None,
                is_parallelism_agnostic=False,
            ),
        )  # fmt: skip
        manager = TieringOffloadingSpec(config).get_manager()
        # It stays mapped, and is nobody's when this process ends, however it does.
        Path(f"/dev/shm/vllm_offload_{engine_id}.mmap").unlink()
        (self._tier,) = manager.secondary_tiers
        self._rows = np.asarray(manager.primary_tier.get_kv_memoryview()).view(np.uint8)

    def fill(self, document: Bytes) -> None:
        blocks = self._size.blocks
        self._rows[:blocks] = document.reshape(blocks, self._size.block_bytes)
        self._rows[blocks:] = 0

    def store(self, name: str) -> None:
        self._run(name, self._tier.submit_store, is_promotion=False)

    def load(self, name: str) -> None:
        self._run(name, self._tier.submit_load, is_promotion=True)

    def loaded(self) -> list[Bytes]:
        return [self._rows[self._size.blocks :].reshape(-1)]

    def _run(self, name: str, submit: Callable[[Any], None], *, is_promotion: bool) -> None:
        keys = [self._make_key(digest, 0) for digest in digests(name, self._size.blocks)]
        first_row = self._size.blocks if is_promotion else 0
        request = self._make_request(req_id=name)
        left = set()
        for begin in range(0, len(keys), self._blocks_per_job):
            some = keys[begin : begin + self._blocks_per_job]
            rows = np.arange(len(some), dtype=np.int32) + first_row + begin
            job = next(self._jobs)
            left.add(job)
            submit(self._make_job(job, some, rows, is_promotion, request))

        def is_done() -> bool:
            for result in self._tier.get_finished_jobs():
                if not result.success:
                    raise RuntimeError("a job failed; its lines above say why")
                left.remove(result.job_id)
            return not left

        wait_until(is_done)


class LMCache:
    """A backend that LMCache's CreateStorageBackends makes, over its LocalCPUBackend, in whose
    memory is what is stored and loaded.
    """

    def __init__(
        self, folder: Path, size: Size, *, backend: str, settings: Callable[[Path], dict[str, Any]]
    ) -> None:
        import torch
        from lmcache.utils import CacheEngineKey
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.memory_management import MemoryFormat
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend import CreateStorageBackends

        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        # A layer with a head, of as many bytes as all of them.
        shape = (1, 2, CHUNK_TOKENS, 1, size.token_bytes // 8)
        about = LMCacheMetadata("SmolLM2-135M", 1, 1, 0, 0, torch.float32, shape)
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK_TOKENS,
            max_local_cpu_size=size.host_memory / (1 << 30),
            **settings(folder),
        )
        backends = CreateStorageBackends(config, about, loop, "cpu")
        self._backend, memory = backends[backend], backends["LocalCPUBackend"]
        self._source = [
            memory.allocate(about.get_shapes(), about.get_dtypes(), MemoryFormat.KV_2LTD)
            for _ in range(size.chunks)
        ]
        self._loaded: list[Any] = []

        def keys_of(name: str) -> list[Any]:
            numbers = [int.from_bytes(one[:8], "big") for one in digests(name, size.chunks)]
            return [CacheEngineKey("SmolLM2-135M", 1, 0, one, torch.float32) for one in numbers]

        self._keys_of = keys_of

    def fill(self, document: Bytes) -> None:
        for memory, part in zip(self._source, np.split(document, len(self._source)), strict=True):
            self._bytes_of(memory)[:] = part
        for memory in self._loaded:
            self._bytes_of(memory)[:] = 0
            memory.ref_count_down()
        self._loaded = []

    def store(self, name: str) -> None:
        keys = self._keys_of(name)
        self._backend.batched_submit_put_task(keys, self._source)
        wait_until(lambda: not any(map(self._backend.exists_in_put_tasks, keys)))
        if not all(map(self._backend.contains, keys)):
            raise RuntimeError("not all chunks were stored")

    def load(self, name: str) -> None:
        loaded = self._backend.batched_get_blocking(self._keys_of(name))
        self._loaded = [memory for memory in loaded if memory is not None]

    def loaded(self) -> list[Bytes]:
        return [self._bytes_of(memory) for memory in self._loaded]

    @staticmethod
    def _bytes_of(memory: Any) -> Bytes:
        return np.frombuffer(memory.byte_array, np.uint8)
