"""How a tier starts: its engine over vLLM's CPU cache, and what is said of both."""

import numpy as np
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import OffloadingSpec

from lmkv._C import Directory, Engine, EngineOptions
from lmkv.config import Config
from lmkv.namespace import Namespace
from lmkv.vllm import notices, tier_identity
from lmkv.vllm.core import core_settings, write_meta
from lmkv.vllm.roots import RootWatch

logger = init_logger("vllm.lmkv")


class TierCore:
    """The engine, and the directories that it can use. Blocks on the disk while it is made.

    Raises ConfigError for settings that cannot work, and where no directory can be used.
    """

    def __init__(self, spec: OffloadingSpec, config: Config, view: memoryview) -> None:
        assert view.shape is not None
        assert view.strides is not None
        row_bytes = view.strides[0]
        namespace = tier_identity.make_namespace(spec, config, row_bytes)
        self._config = config
        self.engine = Engine(_options(config, namespace, view, row_bytes))
        self.directory = Directory(root=list(config.path), namespace=namespace.digest, ranks=1)
        info = self.engine.info()
        self._roots = RootWatch(config.path, 0)
        left_out = self._roots.left_out(info)
        self._unloadable = self.engine.roots_out_of_service()
        self._unstorable = len(left_out)
        self.directory.set_out_of_service(self._unloadable)
        notices.slow(config, info, 0)
        if info["arena_error"]:
            notices.no_arena(0, info["arena_error"])
        notices.closed_to_group(config, left_out)
        write_meta(namespace, config, tier_identity.about(spec.config, config), left_out)
        if tier_identity.is_known_by_name_only(namespace):
            logger.warning(
                "lmkv: of the model this tier is told its name only, %s, and not its weights: "
                'engines with other weights of that name need another "namespace", or a directory '
                "that has the weights in the place of the name",
                spec.config.model.name,
            )
        notices.started(config, info, namespace=namespace.short, chunk_bytes=row_bytes, ranks=1)

    def most_stores(self) -> int:
        """Stores that the engine takes at a time; the rest of its memory is for loads."""
        slabs = self.engine.stats()["slabs_total"]
        return slabs - max(1, slabs // 4)

    def loads_changed(self) -> bool:
        """Whether directories went out of service for loads, or came back, since the last call."""
        unloadable = self.engine.roots_out_of_service()
        if unloadable == self._unloadable:
            return False
        self._unloadable = unloadable
        self.directory.set_out_of_service(unloadable)
        self._roots.update(self.engine.info())
        return True

    def saw_stores_out(self, count: int) -> None:
        """``count``: directories that are out of service for stores."""
        if count != self._unstorable:
            self._unstorable = count
            self._roots.update(self.engine.info())


def _options(
    config: Config, namespace: Namespace, view: memoryview, row_bytes: int
) -> EngineOptions:
    """The CPU cache as paged memory of one segment: a chunk is a block, and a block is a row."""
    return EngineOptions(
        namespace=namespace.digest,
        rank=0,
        # The array goes at once: vLLM cannot release its view while there is one.
        segments=[(np.asarray(view).ctypes.data, row_bytes, row_bytes)],
        block_count=len(view),
        block_tokens=config.chunk_tokens,
        blocks_per_chunk=1,
        **core_settings(config),
    )
