"""The connector's scheduler side: what each request loads, what each step stores.

Runs on the engine core's thread. No call touches a disk: lookups are made by threads of the core,
for which a step waits a millisecond at most.

Some requests pass by, with nothing loaded and nothing stored: pooling requests, and those with a
LoRA adapter. vLLM's block hashes tell adapters apart by name and path, which is enough within a
process but not in a directory that outlives it: another adapter may lie there tomorrow.
"""

import math
import time
from collections.abc import Mapping, Sequence

from vllm.config import VllmConfig
from vllm.distributed.kv_events import KVCacheEvent
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from lmkv._C import ArenaView, Directory
from lmkv.config import Config
from lmkv.errors import ArenaError
from lmkv.remote.lookup import RemoteLookup, open_presence
from lmkv.vllm import identity, notices
from lmkv.vllm.activity import ActivityLog
from lmkv.vllm.events import Events
from lmkv.vllm.finder import Finder
from lmkv.vllm.groups import Groups, Windows
from lmkv.vllm.handshake import Handshake
from lmkv.vllm.loads import Found, Loads, Outcome
from lmkv.vllm.lookup import Lookup
from lmkv.vllm.memory import Memory
from lmkv.vllm.metadata import NOTHING, Hello, RootsOut, StepMetadata, StepReport, Store
from lmkv.vllm.meter import Meter
from lmkv.vllm.metrics import LMKVStats
from lmkv.vllm.pace import Pace
from lmkv.vllm.prefills import Prefills
from lmkv.vllm.stores import StorePlanner
from lmkv.vllm.waiting import Waiting

# Named below "vllm", whose logging set-up would drop the lines of any other name.
logger = init_logger("vllm.lmkv")

# How long an idle engine keeps stepping for stores on their way to the disk, so that the
# counters follow. Blocks that are still being gathered keep it stepping without a limit.
STORE_LINGER_SECONDS = 0.5

# While something is under way, counters are reported no more often than this.
STATS_SECONDS = 0.05


class SchedulerSide:
    """See the module. Serves nothing until all workers have said the same namespace."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, config: Config
    ) -> None:
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        self._vllm_config = vllm_config
        self._config = config
        self._ranks = vllm_config.parallel_config.world_size
        self._handshake = Handshake(config, self._ranks)
        self._directory: Directory | None = None
        self._remote: RemoteLookup | None = None
        self._roots_out = RootsOut()  # of any rank
        self._lookup: Lookup | None = None
        self._groups: Groups | None = None
        self._stores: StorePlanner | None = None
        self._manager: KVCacheManager | None = None
        # When each request was first admitted: what it loads, uses and stores carries this time,
        # so that its head, written first, is not older than its tail.
        self._used_at: dict[str, float] = {}
        self._refusal = identity.refusal(vllm_config, kv_cache_config, config.chunk_tokens)
        groups = kv_cache_config.kv_cache_groups
        self._block_tokens = 0 if self._refusal else groups[0].kv_cache_spec.block_size
        self._loads = Loads(self._block_tokens)
        self._pace = Pace(config.load_policy, self._block_tokens)
        self._prefills = Prefills(self._pace)
        self._meter = Meter()
        # Most steps of an engine find nothing to do and nothing to report here.
        self._has_news = True  # since the last take_stats
        self._has_work = True  # for the next step
        self._told_at = -math.inf
        self._waiting = Waiting(
            self._block_tokens,
            self._loads,
            self._pace,
            self._prefills,
            self._meter,
            may_load=transfer.is_kv_consumer and config.load_policy != "never",
            may_store=transfer.is_kv_producer,
        )
        self._was_reset = False
        self._linger_until = 0.0
        events = vllm_config.kv_events_config
        self._tells_events = events is not None and events.enable_kv_cache_events
        self._events = Events(0, enabled=False)
        self._activity = ActivityLog()
        if self._refusal:
            self._refuse(self._refusal)
            return
        config.blocks_per_chunk(self._block_tokens)
        if transfer.is_kv_consumer and transfer.kv_load_failure_policy != "recompute":
            logger.warning(
                "lmkv: kv_load_failure_policy is %r: a request whose KV file turns out to be "
                'bad or gone will FAIL. Set "kv_load_failure_policy": "recompute" in '
                "--kv-transfer-config to have it computed instead.",
                transfer.kv_load_failure_policy,
            )

    # -- start ---------------------------------------------------------------------------

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        logger.warning("lmkv: nothing is stored or loaded: %s", reason)

    def bind(self, manager: KVCacheManager) -> None:
        self._manager = manager
        self._start()

    def greet(self, hellos: Mapping[int, Hello]) -> None:
        """Workers' findings, by rank; starts serving when all of them have come."""
        if self._lookup is None and not self._refusal:
            self._handshake.greet(hellos)
            self._start()

    def _start(self) -> None:
        if self._manager is None or not self._handshake.is_complete:
            return
        if problem := self._handshake.problem:
            self._refuse(problem)
            return
        per_chunk = self._config.blocks_per_chunk(self._block_tokens)
        self._directory = Directory(
            root=list(self._config.path),
            namespace=self._handshake.namespace,
            ranks=self._ranks,
        )
        self._remote = self._remote_lookup()
        self._note_roots()
        self._events = Events(self._block_tokens, enabled=self._tells_events)
        manager = self._manager
        self._groups = Groups.of(manager, self._block_tokens, per_chunk)
        self._stores = StorePlanner(
            manager.block_pool,
            lambda request_id: manager.get_blocks(request_id).blocks,
            self._groups,
            block_tokens=self._block_tokens,
            blocks_per_chunk=per_chunk,
            ranks=self._ranks,
            tails=self._config.store_tail,
            generated=self._config.store_generated,
            draft_tokens=self._vllm_config.num_speculative_tokens,
            events=self._events,
        )
        arena = self._arena()
        memory = Memory(self._stores.in_memory, arena)
        # What lies in an arena is known, and not guessed.
        self._pace.remember_up_to(0 if arena is not None else self._handshake.slabs)
        self._lookup = Lookup(
            self._directory, per_chunk, self._config.store_tail, memory, remote=self._remote
        )
        finder = Finder(
            self._lookup,
            Windows(self._groups, self._lookup, memory),
            self._groups,
            self._stores,
            self._events,
            self._meter,
            self._block_tokens,
        )
        self._waiting.start(finder, self._stores, memory)

    def _remote_lookup(self) -> RemoteLookup | None:
        place = self._config.remote_place
        if place is None:
            return None
        namespace, ranks = self._handshake.namespace, self._ranks
        return RemoteLookup(
            lambda: open_presence(place, namespace, ranks),
            lambda problem: notices.remote_lookups(str(place), problem),
        )

    def _arena(self) -> ArenaView | None:
        """Host memory that the ranks share with other engines, if they do."""
        slab_bytes = self._handshake.arena_slab_bytes
        if not slab_bytes:
            return None
        try:
            return ArenaView(
                directory=self._config.arena_directory,
                slab_bytes=slab_bytes,
                file_mode=self._config.file_mode,
                namespace=self._handshake.namespace,
                ranks=self._ranks,
            )
        except ArenaError as error:  # the ranks may be on other hosts
            logger.warning("lmkv: what other engines have in host memory is not found: %s", error)
            return None

    def _note_roots(self) -> None:
        """Ask nothing of a directory that any rank cannot load from: it may hang, and a prefix is
        only loaded if all ranks have it.
        """
        out = self._handshake.roots_out()
        if self._directory is None or out == self._roots_out:
            return
        self._roots_out = out
        self._stir()
        self._meter.gauge("loads_out_of_service", len(out.loads))
        self._meter.gauge("stores_out_of_service", len(out.stores))
        remote = len(self._config.path)  # counts as one more
        self._directory.set_out_of_service(sorted(out.loads - {remote}))
        if self._remote is not None:
            self._remote.switch(on=remote not in out.loads)
        if self._lookup is not None:
            self._lookup.forget()
        self._waiting.ask_again()

    # -- waiting requests ------------------------------------------------------------------

    def new_request(self, request: Request) -> None:
        """Read what the request asks for."""
        self._stir()
        self._waiting.add(request)

    def matched_tokens(self, request: Request, computed_tokens: int) -> int | None:
        """As ``Waiting.matched_tokens``."""
        self._stir()
        return self._waiting.matched_tokens(request, computed_tokens)

    def admitted(self, request: Request, blocks: KVCacheBlocks, external_tokens: int) -> None:
        """The request was given blocks; with ``external_tokens`` it waits for its load."""
        request_id = request.request_id
        self._stir()
        found = self._waiting.admit(request_id)
        if self._stores is not None and not self._waiting.passes_by(request):
            used_at = self._used_at.setdefault(request_id, time.time())
            if self._waiting.may_store(request):
                self._stores.admit(request, used_at)
            elif found is not None:
                self._stores.use_local(request, found.first_block, used_at)
        if not external_tokens:
            self._prefills.admit(request)
            return
        self._load(request_id, found, blocks.blocks, external_tokens)

    def _load(
        self,
        request_id: str,
        found: Found | None,
        blocks: Sequence[Sequence[KVCacheBlock]],
        tokens: int,
    ) -> None:
        if found is not None and self._is_promised(found, tokens):
            assert self._groups is not None
            end = found.first_block - (-tokens // self._block_tokens)
            ids = [[block.block_id for block in of_group[:end]] for of_group in blocks]
            used_at = self._used_at.get(request_id, 0.0)
            self._loads.begin(request_id, found, self._groups, ids, used_at)
            if found.decision is not None and found.decision.is_trial:
                decision = found.decision
                self._pace.began_trial(decision.disk_tokens, is_remote=decision.is_remote)
            return
        logger.error(
            "lmkv: request %s is to load %d tokens that it was not promised; they are computed",
            request_id,
            tokens,
        )
        first_group = blocks[0] if blocks else ()
        block_ids = [block.block_id for block in first_group]
        if found is None:
            # Blocks of a local hit have hashes, those that wait for their bytes have none.
            bare = [block.block_id for block in first_group if block.block_hash is None]
            self._loads.refuse(request_id, tokens, bare or block_ids)
            return
        self._loads.refuse(request_id, tokens, block_ids[found.first_block :])
        if self._lookup is not None:  # not to be promised again at once
            self._lookup.mark_absent(found.chunks.keys)

    def _is_promised(self, found: Found, tokens: int) -> bool:
        """Whether so many tokens of what was found can be loaded. Where there are windows, others
        are wanted for fewer tokens.
        """
        if not found.decision:
            return False
        promised = found.blocks * self._block_tokens
        one_group = self._groups is None or len(self._groups) == 1
        return tokens <= promised if one_group else tokens == promised

    # -- every step --------------------------------------------------------------------------

    def step(self, output: SchedulerOutput) -> StepMetadata:
        """Loads and stores of one step."""
        if not self._has_work:
            return NOTHING
        self._waiting.begin_step()
        if self._lookup is not None:
            self._lookup.begin_step()
        stores: list[Store] = []
        if self._stores is not None and output.has_sync_kv_loads:
            # What a sibling of MultiConnector loads in this step may turn out not to have come.
            self._stores.pass_over()
        elif self._stores is not None:
            handed_out = output.kv_connector_block_state
            states = handed_out.boundary_state_offloads if handed_out is not None else None
            stores = self._stores.plan(output.num_scheduled_tokens, states)
        if stores:
            self._has_news = True
            self._linger_until = time.monotonic() + STORE_LINGER_SECONDS
        uses = self._stores.take_uses() if self._stores is not None else []
        timed = self._prefills.step(output.num_scheduled_tokens)
        cancelled = self._loads.take_cancelled()
        self._has_work = bool(self._prefills) or (
            self._stores is not None and self._stores.has_requests
        )
        return StepMetadata(self._loads.take_new(), stores, uses, cancelled, timed)

    def _stir(self) -> None:
        """Something happened."""
        self._has_news = self._has_work = True

    def settle(self, output: KVConnectorOutput) -> None:
        """What the workers report of the step."""
        report = output.kv_connector_worker_meta
        # Most steps have none, and asking None for its class costs more than all else here does:
        # StepReport's base is an abstract class.
        if report is not None and isinstance(report, StepReport):
            self._stir()
            self._prefills.step_ended(report.timed)
            self._reported(report)
        elif self._prefills:
            self._prefills.step_ended(0)
        if output.finished_recving:
            self._stir()
            for request_id in output.finished_recving:
                if outcome := self._loads.end(request_id):
                    self._loaded(request_id, outcome)
        self._activity.report()

    def _reported(self, report: StepReport) -> None:
        self.greet(report.hellos)
        if report.roots_out:
            self._handshake.note_roots(report.roots_out)
            self._note_roots()
        self._loads.note_failed(report.failed_chunks)
        self._loads.note_ended(report)
        if self._stores is not None and self._lookup is not None:
            before = self._stores.unfinished_jobs
            stored = self._stores.settle(report)
            for key in stored:
                self._lookup.mark_stored(key)
            self._pace.has_in_memory(stored)
            ended = before - self._stores.unfinished_jobs
            self._activity.count(stored=len(stored), unstored=ended - len(stored))
        self._events.gone(report.evicted)
        tokens, seconds, is_remote = report.read_after
        self._pace.saw_rest(tokens, seconds, is_remote=is_remote)

    def _loaded(self, request_id: str, outcome: Outcome) -> None:
        self._meter.count("tokens_loaded", outcome.gained)
        self._meter.count("tokens_loaded_memory", outcome.tokens_from_memory)
        if outcome.seconds:
            self._meter.observe("load_seconds", outcome.seconds)
        self._meter.count("tokens_failed", outcome.lost)
        self._activity.count(tokens=outcome.gained, tokens_failed=outcome.lost)
        self._pace.has_in_memory(outcome.keys)
        if outcome.late:
            self._meter.count("loads_late", 1)
            self._waiting.gave_up(request_id)
            self._pace.gave_up(outcome.late, outcome.disk_tokens, is_remote=outcome.is_remote)
        elif outcome.tokens_read and not outcome.failed:
            # Another tier may have had it by then than was thought.
            as_thought = outcome.is_remote == outcome.read_remotely
            self._pace.saw_load(
                outcome.tokens_read,
                outcome.seconds,
                trial=outcome.is_trial and as_thought,
                is_remote=outcome.read_remotely,
            )
            if outcome.is_trial and not as_thought:
                self._pace.tried_nothing(is_remote=outcome.is_remote)
        elif outcome.is_trial:
            self._pace.tried_nothing(is_remote=outcome.is_remote)
        if outcome.failed and self._lookup is not None and self._stores is not None:
            # What failed is computed now and stored again: nothing may say that it is there.
            self._events.gone(outcome.failed)
            self._lookup.mark_absent(outcome.failed)
            self._stores.doubt(outcome.failed)
            self._waiting.ask_again()

    def take_events(self) -> list[KVCacheEvent]:
        """KV events since the last call."""
        return self._events.take()

    def take_stats(self) -> LMKVStats | None:
        """What moved since it was last told; None if nothing did, or while something is under way
        and it was just now.
        """
        if not self._has_news:
            return None
        now = time.monotonic()
        if now < self._told_at + STATS_SECONDS and (self._loads or self.stores_under_way):
            return None
        self._told_at = now
        self._has_news = False
        if self._lookup is not None:
            self._meter.count("lookups_given_up", self._lookup.take_given_up())
        if self._stores is not None:
            self._meter.observe("store_seconds", *self._stores.take_seconds())
        if self._remote is not None:
            self._meter.gauge("remote_lookups_out_of_service", int(self._remote.is_out))
        self._meter.gauge("loads_under_way", len(self._loads.requests()))
        self._meter.gauge("stores_under_way", self.stores_under_way)
        if compute := self._pace.compute_seconds_per_token:
            self._meter.gauge("compute_tokens_per_second", round(1 / compute))
        if load := self._pace.load_seconds_per_token:
            self._meter.gauge("load_tokens_per_second", round(1 / load))
        if load := self._pace.remote_seconds_per_token:
            self._meter.gauge("remote_load_tokens_per_second", round(1 / load))
        return self._meter.take()

    # -- ends --------------------------------------------------------------------------------

    def finished(self, request_id: str) -> None:
        """The request ended, perhaps before it was ever admitted. A load that is under way is
        given up; vLLM keeps its blocks until the workers have reported that it has ended.
        """
        self._stir()
        self._told_at = -math.inf  # there may be no further step to tell what it did
        self._loads.cancel(request_id)
        self._waiting.forget(request_id)
        self._used_at.pop(request_id, None)
        self._prefills.forget(request_id)
        if self._stores is not None:
            self._stores.forget(request_id)

    @property
    def stores_under_way(self) -> int:
        """Chunks on their way to the directory."""
        return self._stores.unfinished_jobs if self._stores is not None else 0

    def shutdown(self) -> None:
        """Nothing is asked of it any more. Returns at once."""
        if self._remote is not None:
            self._remote.close()

    def has_pending_work(self) -> bool:
        """Whether an engine without requests should go on stepping."""
        if self._stores is None:
            return False
        if self._stores.pinned_jobs:
            return True
        return self._stores.unfinished_jobs > 0 and time.monotonic() < self._linger_until

    def has_pending_block_frees(self) -> bool:
        return self._stores is not None and self._stores.holds_unused_blocks()

    def reset(self) -> bool:
        """Load and store nothing any more, until the engine is started again.

        vLLM asks for it when what was computed so far must not be used any longer. The reason
        may be other weights, and then what the namespace says of them is not true any more.
        The directory is shared and stays as it is. Jobs in flight go on. False while loads are
        among them.
        """
        if not self._was_reset:
            self._was_reset = True
            logger.warning(
                "lmkv: the cache was reset (the weights may have changed): nothing is stored or "
                "loaded any more until this engine is started again"
            )
        self._waiting.stop()
        if self._stores is not None:
            self._stores.stop()
        return not self._loads
