"""The C++ core, as Python sees it. Bound in ``csrc/bindings.cpp``.

Nothing here imports torch. Calls that may touch a disk release the GIL and say so; every
other call returns in microseconds and may be made from an engine's step.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

USE_TICK_SECONDS: int
"""Uses of a chunk are told apart by this: within one only the first changes its file."""

class ConfigError(ValueError):
    """A setting or an argument that cannot work."""

class DeviceError(RuntimeError):
    """A GPU that cannot be used, or a build without CUDA."""

class ArenaError(RuntimeError):
    """An arena that cannot be used, and why."""

@final
class BuildInfo:
    """What this binary was built with. All fields are strings; ``""`` means not built in."""

    version: str
    compiler: str
    liburing: str
    xxhash: str
    cuda: str
    cuda_architectures: str

def build_info() -> BuildInfo: ...

@final
class CudaStatus:
    """``device_count`` is 0 where there is no usable GPU; ``reason`` then says why."""

    device_count: int
    reason: str

def cuda_status() -> CudaStatus: ...

@final
class RootReport:
    """What a directory can do, found by trying: writes, reads back and removes one small file.

    ``io_engine``, ``direct_io`` and ``shared`` (other hosts may have it mounted) are what an
    :class:`Engine` would choose for it, the ``*_reason`` fields say why, and ``error`` is ``""``
    unless the directory is unusable.
    """

    filesystem: str
    shared: bool
    shared_reason: str
    io_engine: str
    io_engine_reason: str
    direct_io: bool
    direct_io_reason: str
    error: str

def probe_root(
    root: str,
    io_engine: str = "auto",
    direct_io: str = "auto",
    shared: str = "auto",
    file_mode: str = "private",
) -> RootReport:
    """Blocks on the disk; creates ``root``. Raises ConfigError for unknown names."""

def slab_bytes(block_bytes: int, blocks_per_chunk: int) -> int:
    """Size in bytes of one slab, which is also that of a whole chunk's file."""

@final
class TransferOptions:
    """How blocks are copied between a GPU and the host; ``"host"`` devices ignore it.

    ``mode`` is ``"auto"``, ``"copy_engine"``, ``"kernel_staged"`` or ``"kernel_mapped"``. With
    ``"auto"`` fragments (dense runs of a block) of at least ``..._copy_engine_from`` bytes go by
    copy engine and smaller ones by the kernel mode ``..._below``. ``thread_blocks`` bounds the
    SMs that a kernel takes; ``staging_bytes`` is the size of a staging buffer. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        mode: str = "auto",
        gather_copy_engine_from: int = 32 << 10,
        gather_below: str = "kernel_staged",
        scatter_copy_engine_from: int = 32 << 10,
        scatter_below: str = "kernel_staged",
        thread_blocks: int = 8,
        staging_bytes: int = 8 << 20,
    ) -> None: ...

@final
class EngineOptions:
    """Everything an :class:`Engine` needs. Keyword arguments only; sizes are in bytes.

    ``segments`` is the layout of the paged KV cache: ``(base address, block stride, bytes)`` of
    each dense run inside every block. ``device`` is ``"host"`` or ``"cuda:<n>"``. ``root`` is one
    directory or several, over which chunks are spread by key and path; ``io_threads``, the depths
    and limits hold for each. ``capacity`` is what everything below it may take together (0: no
    limit), ``free_space_floor`` the percentage of the filesystem that stays free. A load that takes
    longer than ``load_timeout`` seconds is given up (0: by how fast loads are). ``shared`` is
    ``"auto"``, ``"yes"`` or ``"no"``: whether other hosts have the filesystem mounted, so that data
    is synced before a file gets its name. ``file_mode`` is ``"private"`` (files 0600, directories
    0700) or ``"group"`` (0660 and 2770). ``eviction`` is ``"reuse"`` or ``"lru"``; chunks not used
    for ``max_age`` seconds go in any case (0: none do). ``arena_directory``: a tmpfs or hugetlbfs
    in which all engines of the node have their slabs in one arena, of about ``host_memory`` bytes
    if it has to be made; ``""``: this engine has slabs of its own, as it has where the arena cannot
    be used (``Engine.info()["arena_error"]``).
    """

    def __init__(
        self,
        *,
        root: str | list[str],
        namespace: bytes,
        rank: int,
        segments: Sequence[tuple[int, int, int]],
        block_count: int,
        block_tokens: int,
        blocks_per_chunk: int,
        host_memory: int,
        device: str = "host",
        io_engine: str = "auto",
        direct_io: str = "auto",
        io_threads: int = 1,
        request_bytes: int = 1 << 20,
        load_depth: int = 64 << 20,
        store_depth: int = 32 << 20,
        transfer: TransferOptions = ...,
        capacity: int = 0,
        free_space_floor: float = 5.0,
        load_timeout: float = 0.0,
        shared: str = "auto",
        file_mode: str = "private",
        eviction: str = "reuse",
        max_age: float = 0.0,
        arena_directory: str = "",
        remote: RemoteOptions = ...,
    ) -> None: ...

@final
class RemoteOptions:
    """A tier behind the directories, for ``EngineOptions(remote=...)``.

    What the directories do not have is asked of it and goes down to them; what is stored in them
    goes up to it: ``writes`` is ``"write_through"`` (a store has ended when both have it),
    ``"write_behind"`` or ``"on_second_use"`` (when it is loaded from memory or a directory).
    ``name`` is for people. ``directory``: one that several hosts share, with a ``capacity`` of its
    own (0: no limit); ``""``: a remote engine, for which ``Engine.take_remote`` gives out orders,
    ``load_depth`` and ``store_depth`` bytes at a time. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        name: str,
        directory: str = "",
        writes: str = "write_behind",
        capacity: int = 0,
        load_depth: int = 128 << 20,
        store_depth: int = 64 << 20,
    ) -> None: ...

class RemoteLane(Enum):
    LOADS = 0
    STORES = 1

class RemoteOrderKind(Enum):
    GET = 0
    PUT = 1
    REMOVE = 2

class RemoteResult(Enum):
    """``THERE``: of a put, it has the chunk already. ``MISSING``: of a get or a removal. ``BAD``:
    of a get, what it has under this key has another size. ``FAILED``: it refused, or was not
    reached. ``UNSETTLED``: of a get, the same, and its buffer may still be written to: the slab is
    never used again.
    """

    DONE = 0
    THERE = 1
    MISSING = 2
    BAD = 3
    FAILED = 4
    UNSETTLED = 5

@final
class RemoteOrder:
    """``bytes`` at ``address`` to be filled (GET) or read (PUT), a whole chunk's, until the order
    is finished. A chunk's name is its ``key``, 32 bytes, with the engine's namespace and rank.
    """

    ticket: int
    kind: RemoteOrderKind
    key: bytes
    address: int
    bytes: int

def fill(address: int, size: int, source: Buffer) -> None:
    """Copy ``source``, which has so many bytes, to ``address``, without the GIL. Raises ConfigError
    if it has more or fewer.
    """

class CompletionKind(Enum):
    GATHERED = 0
    STORED = 1
    LOADED = 2

@final
class Completion:
    """One event of one job.

    A store job yields GATHERED (its source blocks may be freed: nothing reads them any more),
    then STORED, both also when it fails. A load job yields one LOADED; ``failed_chunks`` are the
    indices, in the list given to ``load``, of chunks whose bytes did not all reach the KV cache.
    ``error`` is ``""`` on success. Of LOADED, ``memory_chunks`` are the indices of chunks that were
    still in host memory, ``remote_chunks`` those that the remote tier brought,
    ``cancelled_chunks`` those of ``failed_chunks`` that ``cancel`` gave up, and ``seconds`` is the
    time since ``load``.
    """

    kind: CompletionKind
    job: int
    failed_chunks: list[int]
    error: str
    memory_chunks: list[int]
    cancelled_chunks: list[int]
    remote_chunks: list[int]
    seconds: float

@final
class Engine:
    """Moves chunks between a paged KV cache and one or several directories. One per worker process.

    Construction may block on the disk (it makes directories and probes the filesystem) and
    raises ConfigError. A directory of several that cannot be used then is left out for good, and
    ``info`` says so. All other methods but ``drain`` and ``close`` return in microseconds.
    They may be called from one thread at a time.
    """

    def __init__(self, options: EngineOptions) -> None: ...
    def store(
        self,
        key: bytes,
        token_begin: int,
        block_ids: Sequence[int],
        stream: int = 0,
        used_at: float | None = None,
    ) -> int:
        """Queue the store of one chunk; returns the job, or 0 if it was dropped (counted).

        ``key`` is 32 bytes. ``block_ids`` are the chunk's blocks in order: ``blocks_per_chunk``
        of them, or fewer for a prompt's tail. The gather is ordered after all work on
        ``stream`` (a CUDA stream handle; ignored by the host device) at the time of the call.
        The blocks must not be freed or written until GATHERED is polled. ``used_at`` is when the
        request began, in seconds as of ``time.time()`` (None: now): the same for all chunks of a
        request, whenever they are stored, so that its head is not evicted before its tail. Raises
        ConfigError, with nothing begun, for a key, ids or counts that cannot be.
        """

    def load(
        self,
        chunks: Sequence[tuple[bytes, int, int, int, Sequence[int]]],
        stream: int = 0,
        used_at: float | None = None,
    ) -> int:
        """Queue the load of one request's chunks and return the job.

        Each chunk is ``(key, token_begin, block_count, first_block, block_ids)``: its file holds
        ``block_count`` blocks, of which those from ``first_block`` on go to ``block_ids``.
        Bytes are verified before any of them is written, and written only after all work on
        ``stream`` at the time of the call (which may still read what the blocks held before).
        The blocks must stay allocated to the request until LOADED is polled. ``used_at`` as in
        ``store``: the chunks count as used then. Raises ConfigError, with nothing begun, for keys,
        ids or counts that cannot be.
        """

    def cancel(self, job: int) -> None:
        """Give up what is left of a load that nobody waits for any more.

        LOADED follows, at once unless the device is writing to blocks of it: then, when it is done.
        What was not loaded is among the ``failed_chunks``. Nothing for a job that has ended.
        """

    def touch(self, chunks: Sequence[tuple[bytes, int]], used_at: float | None = None) -> None:
        """Count chunks, ``(key, token_begin)``, as used though nothing is loaded of them.

        Their files' times are renewed in the background; what is not there is passed over.
        Raises ConfigError for keys that cannot be.
        """

    def poll(self) -> list[Completion]:
        """Completions since the last call, oldest first. Never blocks.

        It also gives up loads whose time is over, and tries a directory that is out of service.
        """

    def slab_memory(self) -> tuple[int, int]:
        """Address and bytes of all slabs, where the buffers of remote orders lie."""

    def take_remote(self, lane: RemoteLane, most_bytes: int, timeout_s: float) -> list[RemoteOrder]:
        """Orders for a remote engine: GETs of ``LOADS``, PUTs and REMOVEs of ``STORES``. As many as
        come to ``most_bytes``, but one at least; none after ``timeout_s``, or once the engine is
        being closed. Blocks until then, without the GIL. Any thread, until ``close`` has returned
        True; every order is to be finished.
        """

    def finish_remote(self, ticket: int, result: RemoteResult, message: str = "") -> None:
        """What became of an order, whose buffer is not touched any more. Any thread. Raises
        ValueError for a ticket that is not under way.
        """

    def take_evicted(self) -> list[bytes]:
        """Keys of chunks of this namespace, of whatever rank, that this engine has evicted since
        the last call. They are forgotten from the 65,537th on.
        """

    def stats(self) -> dict[str, int]:
        """Counters since start, and gauges (``slabs_*``, ``*_in_flight``, ``store_bytes_used``,
        ``store_capacity``, ``loads_out_of_service``, ``stores_out_of_service``): sums over the
        directories.
        """

    def info(self) -> dict[str, str]:
        """What was chosen at start and why: ``device``, ``io_engine``, ``io_engine_reason``, ...

        Of several directories this is the first that can be used; what differs in the others is
        under ``root<i>_...``. Why a directory is out of service is under ``root<i>_error`` (it
        could not be used at start), ``root<i>_loads_out`` and ``root<i>_stores_out``, and
        ``roots_out`` has all of that in words.
        """

    def drain(self, timeout_s: float) -> bool:
        """Block (GIL released) until no job is in flight; False if ``timeout_s`` passed first."""

    def roots_out_of_service(self) -> list[int]:
        """Indices of directories from which nothing can be loaded: do not look chunks up there.

        Those that failed again and again, or hang, are tried by ``poll`` and come back.
        """

    def close(self, timeout_s: float = ...) -> bool:
        """Finish what is on the device or at the kernel, and drop what is queued.

        Blocks, with the GIL released, for ``timeout_s`` at most (for as long as it takes, if left
        out). Stores are dropped and loads fail from then on. The memory is freed with the object.
        False if a disk has not answered in time: the kernel may still write to the memory, so the
        object then stays for as long as the process. A housekeeping thread that hangs in a system
        call is left behind after two seconds.
        """

@final
class Directory:
    """Looks chunks up in ``<root>/v1/<namespace16>/r<rank>/``. Needs no Engine.

    Asks the filesystem on the caller's thread, without the GIL: not for an engine's step.
    ``root`` is one directory or several, as for an Engine. Any thread; copies that a
    :class:`LookupService` makes share what is out of service.
    """

    def __init__(self, *, root: str | list[str], namespace: bytes, ranks: int) -> None: ...
    def set_out_of_service(self, roots: Sequence[int]) -> None:
        """These directories, by index, are not asked: nothing of theirs is there. The last call
        counts.
        """
    def lookup(self, keys: Sequence[bytes]) -> int:
        """How many of the leading ``keys`` have an entry in every rank's directory.

        A hint, not a promise: what is found may be bad or gone when it is loaded. One system
        call per key and rank.
        """

    def present(self, keys: Sequence[bytes]) -> list[bool]:
        """For each of ``keys``, whether every rank's directory has an entry for it."""

@final
class LookupService:
    """Looks chunks up for a thread that must not wait: threads of its own ask the ``Directory``.

    What was there is taken for present for some seconds (ten at most), without another look.
    Absence is told once and forgotten. Callable from any thread; the GIL is released.
    """

    def __init__(self, directory: Directory) -> None: ...
    def lookup(self, keys: Sequence[bytes], patience_s: float) -> int | None:
        """As ``Directory.lookup``, or None if that is not known within ``patience_s`` seconds.

        Then ask again later: the filesystem is being asked. What it has not answered within a
        second is taken for absent, and so is everything unknown while it hangs for longer.
        """

    def present(self, keys: Sequence[bytes], patience_s: float) -> list[bool] | None:
        """As ``Directory.present``, with the patience of ``lookup``."""

    def forget(self) -> None:
        """Drop all that is known, as when a directory goes out of service."""

    def given_up(self) -> int:
        """How many questions were taken for absent because the filesystem did not answer."""

@final
class Faults:
    """Faults of a disk, injected into the engines that this is given to. Any thread; no blocking.

    ``spec`` are faults separated by commas, each ``[OPERATION.]KIND[:TIME][:RATE]``, as in
    ``"eio:0.01,delay:20ms,write.enospc:0.05"``; ``""`` is none. Kinds: ``eio``, ``enospc``,
    ``edquot``, ``estale``, ``erofs``, ``eagain``, ``eintr`` (the operation fails so); ``lost``
    (it is executed, and fails as if it were for the second time), ``lost_eio``; ``short``
    (fewer bytes than asked for), ``truncate`` (a read meets the end of the file, a write loses its
    end), ``corrupt`` (one bit is another), ``delay`` (takes a time), ``reorder`` (up to a time, 5ms
    by default), ``hang`` (until :meth:`release`). Operations: ``enter`` (a directory), ``open``,
    ``read``, ``write``, ``allocate``, ``sync``, ``touch``, ``chmod``, ``close``, ``stat``,
    ``rename``, ``mkdir``, ``unlink``, ``rmdir``; without one a fault happens wherever a kernel may
    answer so. The rate is 0 to 1, and 1 if it is not given. Equal seeds draw equal faults for equal
    operations. Raises ConfigError for a text that cannot be, with the nearest word that can.
    """

    def __init__(self, spec: str = "", seed: int = 0) -> None: ...
    def change(self, spec: str) -> None:
        """Another ``spec`` for the operations from now on. Raises ConfigError."""

    def release(self) -> None:
        """Let what hangs go on. An engine's ``close`` waits for it."""

    def hanging(self) -> int:
        """Operations that hang now."""

    def counts(self) -> dict[str, int]:
        """Faults that happened, by ``"operation.kind"``."""

def bench_engine(options: EngineOptions, faults: Faults | None = None) -> Engine:
    """An engine whose device copies nothing: only files and checksums take time.

    Its slabs are full of random bytes from the start, which every store makes different from all
    before. What it loads goes nowhere. Blocks while it fills them. Raises ConfigError.
    """

def fault_engine(options: EngineOptions, faults: Faults) -> Engine:
    """An engine as any other, over a disk with ``faults``. Raises ConfigError."""

@final
class TransferBench:
    """A device and host memory as an engine's, without files: times gathers and scatters.

    One thread at a time. Raises ConfigError for names and sizes that cannot work, DeviceError
    for a device that cannot be used, RuntimeError for a transfer that fails.
    """

    def __init__(
        self,
        *,
        device: str,
        segments: Sequence[tuple[int, int, int]],
        host_bytes: int,
        transfer: TransferOptions = ...,
    ) -> None: ...
    @property
    def address(self) -> int:
        """Where the host memory begins; transfers lie in it one behind the other."""

    def run(self, direction: str, transfers: Sequence[Sequence[int]], stream: int = 0) -> float:
        """Seconds that all ``transfers`` (block ids each) take, submitted at once.

        ``direction`` is ``"gather"`` or ``"scatter"``. They begin behind what ``stream`` has been
        given. Blocks, without the GIL.
        """

    def info(self) -> dict[str, str]: ...

@final
class TreeFile:
    """A file of ours below a root: a chunk, or one that is being written or was left half written.

    ``key`` has 32 bytes, or none for the latter, of which no ``namespace`` is told. ``bytes`` are
    those it takes on the disk, ``size`` is the file's. A chunk's modification time is that of its
    last use. ``removed``: the scan has removed it.
    """

    namespace: str
    rank: int
    key: bytes
    bytes: int
    size: int
    modified_ns: int
    changed_ns: int
    removed: bool

def scan_tree(root: str, visit: Callable[[TreeFile], object], sweep_before_ns: int = ...) -> bool:
    """Call ``visit`` with each file of ours below ``root``, of all namespaces and ranks.

    Files that are no chunks and were last written before ``sweep_before_ns`` (since the epoch; by
    default none) are removed as they are found. False if something could not be read, so that there
    may be more. Blocks on the disk, the GIL released but for ``visit``, whose exceptions end the
    scan.
    """

class Removal(Enum):
    REMOVED = 0
    GONE = 1
    KEPT = 2

class Finding(Enum):
    SOUND = 0
    BAD = 1
    GONE = 2
    UNREADABLE = 3

@final
class Inspection:
    """What a chunk's file turned out to be. ``text`` says why it is not sound.

    The numbers are the header's, and 0 unless it is sound; ``bytes`` is the file's size.
    """

    finding: Finding
    text: str
    bytes: int
    tokens: int
    token_begin: int
    block_tokens: int
    block_bytes: int

def inspect_chunk(root: str, namespace: str, rank: int, key: bytes, blocks: bool) -> Inspection:
    """Read a chunk's header and, with ``blocks``, all of it, and check it as a load does.

    Blocks on the disk, without the GIL; memory is bounded. What was read does not stay in the page
    cache. Raises ConfigError for what is no namespace (16 hex digits) or no key.
    """

def root_of(roots: list[str], key: bytes) -> int:
    """Index of the directory that a chunk belongs to, of those that an engine is given.

    It depends on the directories' names as they are given, and not on their order. Raises
    ConfigError for no directories and for what is no key.
    """

def remove_chunk(root: str, file: TreeFile) -> Removal:
    """Remove a chunk that a scan has shown, unless it was used, changed or replaced since.

    ``GONE``: somebody else was faster. Blocks on the disk, without the GIL. Raises OSError, and
    ConfigError for a file that is no chunk.
    """

@final
class EvictionPolicy:
    """The evictor's order, ``"reuse"`` or ``"lru"``, over files that need not be there.

    One thread. Raises ConfigError for another order.
    """

    def __init__(self, order: str) -> None: ...
    def scan(
        self, keys: bytes, modified_ns: npt.NDArray[np.int64], now_ns: int
    ) -> npt.NDArray[np.float64]:
        """One scan of a directory with these files: what each is worth; the least goes first, and
        of equals the one with the oldest time.

        ``keys``: 32 bytes each; ``modified_ns``, of shape (files,): their modification times, as of
        :func:`use_stamp` and :func:`renewed`. The policy learns from what has changed since the
        last scan. Raises ConfigError for a number of times that is not that of the keys.
        """

    def evicted(self, keys: bytes) -> None:
        """Files that went for their worth. Raises ConfigError for what is no number of keys."""

def use_stamp(used_at: float, token_begin: int, now: float) -> int:
    """The modification time, in nanoseconds since the epoch, of a file that is new.

    ``used_at``: when its request was admitted; ``now``: both in seconds since the epoch.
    ``token_begin``: where the chunk begins in its prompt. See docs/decisions/0007.
    """

def renewed(found_ns: int, stamp_ns: int) -> int:
    """The modification time of a file that has ``found_ns`` and is used again, at a time that
    :func:`use_stamp` made ``stamp_ns`` of; the same if it carries that use already.
    """

@final
class ArenaView:
    """What lies in the arena of engines whose slabs have ``slab_bytes``, for one namespace: a chunk
    is there when every rank below ``ranks`` has it. Calls take microseconds, 0.2 ms at most; where
    the arena is held for longer, nothing is there.
    """

    def __init__(
        self, *, directory: str, slab_bytes: int, file_mode: str, namespace: bytes, ranks: int
    ) -> None:
        """Raises ArenaError where there is none."""

    def leading(self, keys: Sequence[bytes]) -> int:
        """How many of ``keys`` are there one after the other."""

    def present(self, keys: Sequence[bytes]) -> list[bool]:
        """Which of ``keys`` are there."""

    def __contains__(self, key: object) -> bool: ...

@final
class ArenaMember:
    """An engine. ``pid`` is that of its own PID namespace."""

    pid: int
    is_alive: bool

@final
class ArenaCounts:
    """Slots, by what they are used for."""

    total: int
    unused: int
    bare: int
    """Of those: no memory is there for them yet."""
    filling: int
    ready: int
    held: int
    """Of those: somebody reads them just now."""
    orphaned: int

@final
class ArenaReport:
    """An arena as it is; sizes in bytes."""

    path: str
    bytes: int
    bytes_taken: int
    """Of those: memory is there for them."""
    slab_bytes: int
    slots: ArenaCounts
    members: list[ArenaMember]
    repairs: int
    """How often an engine died in the middle of a change."""
    fault: str
    """What is not as it must be; ``""`` if all is well."""

def arena_report(
    directory: str, slab_bytes: int, file_mode: str = "private", thorough: bool = False
) -> ArenaReport | None:
    """None where there is no arena. Raises ArenaError for one that cannot be read. May take a
    second. With ``thorough`` for a ``fault``, too, for which engines may have to wait.
    """

def remove_arena(directory: str, slab_bytes: int, file_mode: str = "private") -> int:
    """Take an arena away that no engine uses, with the memory of its chunks; their files stay.
    Returns how many bytes that were. Raises ArenaError, also where engines use it. Takes as long as
    the kernel needs to free them.
    """
