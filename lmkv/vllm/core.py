"""What the connector's workers and the tier have in common when they start the C++ engine."""

from collections.abc import Container
from typing import Any

from vllm.logger import init_logger

from lmkv._C import RemoteOptions
from lmkv.config import Config
from lmkv.namespace import Fact, Namespace
from lmkv.tuning import depths_of

logger = init_logger("vllm.lmkv")


def core_settings(config: Config) -> dict[str, Any]:
    """The arguments of ``lmkv._C.EngineOptions`` that are settings, or were measured for the
    directories. Blocks on the disk.
    """
    depths = depths_of(config.path)
    return {
        "root": list(config.path),
        "host_memory": config.host_memory.bytes,
        "arena_directory": config.arena_directory if config.host_memory.is_shared else "",
        "io_engine": config.io_engine,
        "direct_io": config.direct_io,
        "io_threads": config.io_threads,
        "load_depth": depths.load_depth,
        "store_depth": depths.store_depth,
        "capacity": config.capacity,
        "free_space_floor": config.free_space_floor,
        "eviction": config.eviction,
        "max_age": config.max_age,
        "load_timeout": config.load_timeout,
        "shared": config.shared,
        "file_mode": config.file_mode,
    }


def remote_settings(config: Config) -> dict[str, Any]:
    """The argument of ``lmkv._C.EngineOptions`` that says what the remote tier is, if any."""
    place = config.remote_place
    if place is None:
        return {}
    return {
        "remote": RemoteOptions(
            name=str(place),
            directory=place.directory,
            writes=config.remote_writes,
            capacity=config.remote_capacity,
        )
    }


def write_meta(
    namespace: Namespace, config: Config, about: dict[str, Fact], left_out: Container[int]
) -> None:
    """Say in every directory that is not ``left_out`` what the namespace is made of. Blocks on the
    disk; a failure is said in the log and is none of the engine.
    """
    for root, path in enumerate(config.path):
        if root in left_out:
            continue
        error = namespace.write_meta(path, about, config.file_mode)
        if error is not None:
            logger.warning("lmkv: could not write meta.json: %s", error)
