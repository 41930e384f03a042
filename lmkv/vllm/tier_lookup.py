"""Which chunks of a request a tier has: vLLM asks for one at a time, the directory is asked for
many.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vllm.v1.kv_offload.base import OffloadKey, get_offload_group_idx

from lmkv._C import Directory
from lmkv.vllm.lookup import Lookup
from lmkv.vllm.tier_identity import tier_key

# Keys that the directory is asked for together: those around the one that vLLM asks for, in the
# order of the prompt. A prompt of which nothing is there costs no more questions than that.
BATCH = 64

# How long an answer is good for the request that asked. vLLM repeats its questions in every step
# in which a request waits.
ANSWER_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _Batch:
    """Keys that are asked for together."""

    keys: list[OffloadKey] = field(default_factory=list)
    names: dict[bytes, OffloadKey] = field(default_factory=dict)  # once they were asked for
    open_in: int = -1  # the last step in which it got no answer


@dataclass(slots=True)
class _Asked:
    """What one request knows."""

    since: float
    answers: dict[OffloadKey, bool] = field(default_factory=dict)
    batches: dict[OffloadKey, _Batch] = field(default_factory=dict)


class TierLookup:
    """Scheduler thread only. Waits for the filesystem as ``Lookup`` does: 1 ms a step, together."""

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = Lookup(directory, blocks_per_chunk=1, tails=False)
        self._clock = clock
        self._step = 0
        self._requests: dict[str, _Asked] = {}
        self._in_memory: set[bytes] = set()
        self._given_up = 0

    def begin_step(self) -> None:
        self._step += 1
        self._lookup.begin_step()

    def find(self, request: str, key: OffloadKey, keys: Mapping[OffloadKey, int]) -> bool | None:
        """Whether a chunk can be loaded; None if that is not known yet: to be asked again.

        ``keys``: all of the request, in the order of its prompt.
        """
        if self._in_memory and tier_key(key) in self._in_memory:
            return True
        asked = self._requests.get(request)
        now = self._clock()
        if asked is None:
            asked = self._requests[request] = _Asked(now)
        elif now - asked.since > ANSWER_SECONDS:
            asked.since, asked.answers = now, {}
        if key not in asked.answers:
            if key not in asked.batches:
                asked.batches = _batches_of(keys)
            self._ask(asked, asked.batches[key])
        return asked.answers.get(key)

    def _ask(self, asked: _Asked, batch: _Batch) -> None:
        """Once a step: vLLM goes on to the end of a prompt of which nothing is known yet."""
        if batch.open_in == self._step:
            return
        if not batch.names:
            batch.names = {tier_key(one): one for one in batch.keys}
        names = [name for name, one in batch.names.items() if one not in asked.answers]
        present = self._lookup.present(names)
        if present is None:
            batch.open_in = self._step
            return
        asked.answers.update((batch.names[name], False) for name in names)
        asked.answers.update((batch.names[name], True) for name in present)

    def forget_request(self, request: str) -> None:
        self._requests.pop(request, None)

    def forget(self) -> None:
        """Ask the filesystem again for everything."""
        self._lookup.forget()
        self._requests.clear()

    def in_memory(self, key: OffloadKey) -> None:
        """A chunk is on its way to the directory, and can be loaded from host memory."""
        self._lookup.mark_stored(tier_key(key))
        self._in_memory.add(tier_key(key))

    def left_memory(self, key: OffloadKey) -> None:
        """It is in the directory now, or will not get there."""
        self._in_memory.discard(tier_key(key))

    def mark_absent(self, keys: Iterable[OffloadKey]) -> None:
        """Take chunks for absent for a while: they failed to load."""
        keys = list(keys)
        names = [tier_key(key) for key in keys]
        self._lookup.mark_absent(names)
        self._in_memory.difference_update(names)
        for asked in self._requests.values():
            for key in keys:
                asked.answers.pop(key, None)

    def given_up(self) -> int:
        """How many chunks were taken for absent because the filesystem did not answer."""
        self._given_up += self._lookup.take_given_up()
        return self._given_up


def _batches_of(keys: Iterable[OffloadKey]) -> dict[OffloadKey, _Batch]:
    batches: dict[OffloadKey, _Batch] = {}
    last: dict[int, _Batch] = {}  # by group
    for key in keys:
        group = get_offload_group_idx(key)
        batch = last.get(group)
        if batch is None or len(batch.keys) == BATCH:
            batch = last[group] = _Batch()
        batch.keys.append(key)
        batches[key] = batch
    return batches
