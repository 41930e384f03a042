"""What a worker says in the log of how it started, and of a directory that is full."""

import os
import stat
from collections.abc import Container, Mapping

from vllm.logger import init_logger

from lmkv.config import Config
from lmkv.values import format_size

logger = init_logger("vllm.lmkv")


def started(
    config: Config, info: Mapping[str, str], *, namespace: str, chunk_bytes: int, ranks: int
) -> None:
    """The first line: where, and what was chosen why."""
    logger.info(
        "lmkv: %s, namespace %s, io engine %s (%s), direct I/O %s (%s), shared %s (%s), "
        "file mode %s, chunks of %d tokens "
        "(%d bytes), host memory %s (%s), %d ranks, device %s, gather "
        "by %s (%s), scatter by %s (%s)",
        ", ".join(config.path),
        namespace,
        info["io_engine"],
        info["io_engine_reason"],
        info["direct_io"],
        info["direct_io_reason"],
        info["shared"],
        info["shared_reason"],
        config.file_mode,
        config.chunk_tokens,
        chunk_bytes,
        config.host_memory,
        info["host_memory"],
        ranks,
        info["device"],
        info["gather"],
        info["gather_reason"],
        info["scatter"],
        info["scatter_reason"],
    )


def no_arena(rank: int, reason: str) -> None:
    """Host memory was to be shared, and is not."""
    logger.warning("lmkv: rank %d: host memory is not shared with other engines: %s", rank, reason)


def remote(place: str, rank: int, problem: str) -> None:
    """A remote engine's client was made (``""``), or why it was not."""
    if problem:
        logger.warning("lmkv: rank %d: remote tier %s fails: %s", rank, place, problem)
    else:
        logger.info("lmkv: rank %d: remote tier %s: connected", rank, place)


def remote_lookups(place: str, problem: str) -> None:
    """The scheduler cannot ask what is in the remote tier, or ("") it can."""
    if problem:
        logger.warning("lmkv: nothing is found in remote tier %s: %s", place, problem)
    else:
        logger.info("lmkv: what is in remote tier %s is found", place)


def random_seed(algorithm: str) -> None:
    logger.warning(
        "lmkv: the hash algorithm %s is seeded at random, so this engine's KV can be "
        "shared with no other engine, nor with its own restart. Use "
        "--prefix-caching-hash-algo sha256_cbor, or set PYTHONHASHSEED.",
        algorithm,
    )


def closed_to_group(config: Config, left_out: Container[int]) -> None:
    """Directories whose own mode keeps out those who are to share them. Blocks on the disk."""
    if config.file_mode != "group":
        return
    for root, path in enumerate(config.path):
        if root in left_out:
            continue
        mode = os.stat(path).st_mode
        if mode & 0o070 != 0o070:
            logger.warning(
                "lmkv: file_mode is group, but %s has mode %04o: other users of its group cannot "
                "use it. Its owner can change that: chmod g+rwxs %s",
                path,
                stat.S_IMODE(mode),
                path,
            )


def slow(config: Config, info: Mapping[str, str], rank: int) -> None:
    """What was found at start that makes everything slower than it need be."""
    if info["pin_error"]:
        logger.warning(
            "lmkv: rank %d: host memory could not be pinned, so that copies to and from the "
            "GPU are slow: %s",
            rank,
            info["pin_error"],
        )
    refused = info["io_engine"] == "threads" and info.get("direct_io") != "off"
    if config.io_engine == "auto" and refused and not rank:
        logger.warning("lmkv: io_uring is not used, threads are: %s", info["io_engine_reason"])


def full(config: Config, totals: Mapping[str, int], info: Mapping[str, str], rank: int) -> None:
    """Which directories refuse chunks for want of space, and why."""
    refusals = {
        path: reason
        for root, path in enumerate(config.path)
        if f"root{root}_error" not in info
        and (reason := info.get(f"root{root}_last_refusal", info["last_refusal"]))
    }
    logger.warning(
        "lmkv: rank %d: chunks are not stored in %s until there is room: %s (%s used, capacity "
        "%s, %s of the disk to stay free); %d so far",
        rank,
        ", ".join(refusals),
        "; ".join(dict.fromkeys(refusals.values())),
        format_size(totals["store_bytes_used"]),
        format_size(config.capacity) if config.capacity else "unlimited",
        f"{config.free_space_floor:g} %",
        totals["stores_dropped_full"],
    )
