"""What waiting requests can load, and how much of it is worth it."""

import dataclasses
import math
import time

from vllm.logger import init_logger
from vllm.v1.request import Request

from lmkv.vllm.control import Controls
from lmkv.vllm.finder import Finder
from lmkv.vllm.loads import Found, Loads
from lmkv.vllm.lookup import Run
from lmkv.vllm.memory import Memory
from lmkv.vllm.meter import Meter
from lmkv.vllm.pace import Decision, Pace, Verdict
from lmkv.vllm.prefills import Prefills
from lmkv.vllm.stores import StorePlanner

logger = init_logger("vllm.lmkv")

# A waiting request's lookup is used again for this long.
LOOKUP_SECONDS = 1.0

# How long a remote tier's answer is waited for, as a part of what computing the request takes: so
# much later it is done where there is none. The answer is known to the next that asks.
ASKING_SHARE = 0.04

# Lookups in one step; the other waiting requests come in later steps, so that a burst of them
# does not hold up those that are decoding.
LOOKUPS_PER_STEP = 32


class Waiting:
    """Answers what vLLM asks of requests that are not admitted yet. Scheduler thread only; waits
    for the filesystem as ``Lookup`` does. Finds nothing until ``start``.
    """

    def __init__(
        self,
        block_tokens: int,
        loads: Loads,
        pace: Pace,
        prefills: Prefills,
        meter: Meter,
        *,
        may_load: bool,
        may_store: bool,
    ) -> None:
        """``may_load``, ``may_store``: whether this engine does so at all."""
        self._block_tokens = block_tokens
        self._loads = loads
        self._pace = pace
        self._prefills = prefills
        self._meter = meter
        self._loads_on = may_load
        self._stores_on = may_store
        self._finder: Finder | None = None
        self._stores: StorePlanner | None = None
        self._memory = Memory()
        self._controls = Controls()
        self._found: dict[str, Found] = {}
        # Requests whose loads were given up because they took too long: one try is enough.
        self._late: set[str] = set()
        # When requests were first told to wait for a trial.
        self._held_since: dict[str, float] = {}
        # When requests first asked what can be loaded.
        self._asked_since: dict[str, float] = {}
        self._lookups_left = LOOKUPS_PER_STEP
        self._is_off = False

    def start(self, finder: Finder, stores: StorePlanner, memory: Memory) -> None:
        """Look for chunks from now on."""
        self._finder = finder
        self._stores = stores
        self._memory = memory

    def stop(self) -> None:
        """All requests pass by from now on."""
        self._is_off = True
        self._found.clear()

    def begin_step(self) -> None:
        """Have time for the lookups of another step."""
        self._lookups_left = LOOKUPS_PER_STEP

    def add(self, request: Request) -> None:
        """Read what the request asks for."""
        if not self._controls.read(request.request_id, request.kv_transfer_params):
            self._meter.count("requests_misunderstood")

    def matched_tokens(self, request: Request, computed_tokens: int) -> int | None:
        """Tokens beyond ``computed_tokens`` that can be loaded; None while another request is
        loading some of them (they will be in vLLM's own prefix cache), while the filesystem has
        not answered, while a trial shows how fast loads are, or when this step has seen enough
        lookups.
        """
        if self._finder is None or self.passes_by(request):
            return 0
        found = self._found.get(request.request_id)
        if found is not None and self._loads.has_any(found.chunks):
            return None
        first_block = computed_tokens // self._block_tokens
        now = time.monotonic()
        if found is None or found.first_block != first_block or now - found.at > LOOKUP_SECONDS:
            if not self._lookups_left:
                return None
            self._lookups_left -= 1
            per_token = self._pace.compute_seconds_per_token
            computing = (per_token or math.inf) * (request.num_tokens - computed_tokens)
            since = self._asked_since.setdefault(request.request_id, now)
            self._finder.begin_request(since, ASKING_SHARE * computing)
            chunks = self._finder.find(
                request,
                first_block,
                may_load=self._may_load(request),
                may_store=self.may_store(request),
            )
            if chunks is None:
                return None
            found = Found(first_block, chunks, now)
            self._found[request.request_id] = found
            if self._loads.has_any(found.chunks):
                return None
        if found.decision is None:
            decided = self._decided(self._finder, request, found)
            if decided is None:
                return None
            found = self._found[request.request_id] = decided
        return found.blocks * self._block_tokens

    def _decided(self, finder: Finder, request: Request, found: Found) -> Found | None:
        """``found``, cut to what is loaded of it; None if it is not known what can be, or pays."""
        decision = self._decide(finder, request, found)
        if decision.verdict is Verdict.WAIT:
            self._held_since.setdefault(request.request_id, time.monotonic())
            return None
        run = found.chunks.first(decision.chunks)
        if len(run) < len(found.chunks):
            cut = finder.all_groups(run, found.first_block)
            if cut is None:
                return None
            if len(cut) < len(run):
                decision, run = decision.cut_to(len(cut)), cut
        return dataclasses.replace(found, chunks=run, decision=decision)

    def _decide(self, finder: Finder, request: Request, found: Found) -> Decision:
        """How much of what was found is loaded."""
        run = found.chunks
        most = self._controls.of(request.request_id).max_load_tokens
        if most is not None:
            end = found.first_block + most // self._block_tokens
            if end < run.end:
                run = run.first(max(0, end - run.begin) // run.blocks_per_chunk)
        if request.request_id in self._late:
            run = Run()
        now = time.monotonic()
        return self._pace.decide(
            run,
            found.first_block,
            in_memory=self._memory.among(run.keys),
            ahead=self._loads.tokens_under_way,
            backlog=self._prefills.backlog(),
            held=now - self._held_since.get(request.request_id, now),
            is_remote=finder.is_remote,
        )

    def passes_by(self, request: Request) -> bool:
        """Whether nothing is loaded or stored for that request."""
        if request.lora_request is not None:
            logger.debug_once("lmkv: requests with a LoRA adapter pass by")
            return True
        if self._is_off or request.pooling_params is not None:
            return True
        return self._controls.of(request.request_id).passes_by

    def _may_load(self, request: Request) -> bool:
        if not self._loads_on or request.skip_reading_prefix_cache:
            return False
        return self._controls.of(request.request_id).load

    def may_store(self, request: Request) -> bool:
        """Whether chunks of that request may be stored."""
        return self._stores_on and self._controls.of(request.request_id).store

    def admit(self, request_id: str) -> Found | None:
        """The request was given blocks: what was found for it, if it was asked for."""
        found = self._found.pop(request_id, None)
        self._held_since.pop(request_id, None)
        self._asked_since.pop(request_id, None)
        if found is not None and found.decision is not None:
            self._count(found.decision)
        return found

    def _count(self, decision: Decision) -> None:
        if decision.compute_seconds is None:  # nothing to decide
            return
        self._meter.count(f"load_decisions_{decision.verdict.value}", 1)
        self._meter.count("load_decisions_trial", decision.is_trial)
        self._meter.count("expected_compute_microseconds", round(decision.compute_seconds * 1e6))
        self._meter.count("expected_load_microseconds", round((decision.load_seconds or 0.0) * 1e6))

    def gave_up(self, request_id: str) -> None:
        """The request's load took too long."""
        self._late.add(request_id)

    def ask_again(self) -> None:
        """What was found may not be there any more."""
        self._found.clear()

    def forget(self, request_id: str) -> None:
        """The request ended."""
        self._found.pop(request_id, None)
        self._held_since.pop(request_id, None)
        self._asked_since.pop(request_id, None)
        self._controls.forget(request_id)
        self._late.discard(request_id)
