"""``LMKVConnector``: vLLM's connector interface, routed to the scheduler's or worker's side."""

# The parameters are the interface's, whether or not lmkv needs them.
# ruff: noqa: ARG002, ARG003

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import PromMetric, PromMetricT
from vllm.platforms import current_platform
from vllm.v1.metrics.cache_hit_source import CacheHitSource
from vllm.v1.outputs import KVConnectorOutput

from lmkv.config import Config
from lmkv.vllm.metadata import Hello, StepMetadata, StepReport
from lmkv.vllm.metrics import LMKVPromMetrics, LMKVStats
from lmkv.vllm.scheduler import SchedulerSide
from lmkv.vllm.worker import WorkerSide

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


class LMKVConnector(KVConnectorBase_V1, SupportsHMA):
    """A directory as vLLM's prefix cache; loads and stores are asynchronous.

    Models with full attention are cached, and those with sliding windows beside it; all others are
    served untouched. Raises ConfigError at start for settings that cannot work.
    """

    _cache_hit_source = CacheHitSource.DISK

    # Each connector has the one of its role.
    _scheduler: SchedulerSide
    _worker: WorkerSide

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        config = Config.from_sources(self._kv_transfer_config.kv_connector_extra_config, os.environ)
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, config)
        else:
            self._worker = WorkerSide(vllm_config, kv_cache_config, config)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a store that is dropped is a miss later on, nothing worse

    @property
    def scheduler_side(self) -> SchedulerSide:
        return self._scheduler

    @property
    def worker_side(self) -> WorkerSide:
        return self._worker

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        """Blocks outermost where the platform can: a block is then one run of bytes."""
        return None if current_platform.is_cpu() else "BLNHC"

    # -- worker --------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._worker.hello

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, StepMetadata)
        self._worker.begin_step(connector_metadata)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        self._worker.start_loads()

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        return

    def wait_for_save(self) -> None:
        self._worker.submit_stores()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._worker.poll() or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        return KVConnectorTransferResults(
            finished_recving=self._worker.poll(),
            failed_recving=self._worker.take_failed_loads(),
        )

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_failed_blocks()

    def build_connector_worker_meta(self) -> StepReport | None:
        return self._worker.take_report()

    # -- scheduler -----------------------------------------------------------------------

    def bind_kv_cache_manager(self, kv_cache_manager: "KVCacheManager") -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self._scheduler.bind(kv_cache_manager)

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: Mapping[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        tensor_parallel = self._vllm_config.parallel_config.tensor_parallel_size
        self._scheduler.greet(
            {
                pp_rank * tensor_parallel + tp_rank: hello
                for (pp_rank, tp_rank), hello in metadata.items()
                if isinstance(hello, Hello)  # with MultiConnector it may be a sibling's
            }
        )

    def on_new_request(self, request: "Request") -> None:
        self._scheduler.new_request(request)

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        self._scheduler.admitted(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        return self._scheduler.step(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler.settle(connector_output)

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._scheduler.finished(request.request_id)
        return False, None

    def take_events(self) -> "Iterable[KVCacheEvent]":
        return self._scheduler.take_events()

    def has_pending_push_work(self) -> bool:
        return self._scheduler.has_pending_work()

    def has_pending_block_frees(self) -> bool:
        return self._scheduler.has_pending_block_frees()

    def reset_cache(self) -> bool | None:
        return self._scheduler.reset()

    # -- both ----------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> LMKVStats | None:
        is_worker = self._role == KVConnectorRole.WORKER
        return self._worker.take_stats() if is_worker else self._scheduler.take_stats()

    def shutdown(self) -> None:
        if self._role == KVConnectorRole.WORKER:
            self._worker.shutdown()
        else:
            self._scheduler.shutdown()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> LMKVStats:
        return LMKVStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> LMKVPromMetrics:
        return LMKVPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
