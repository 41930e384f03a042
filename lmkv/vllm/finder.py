"""What can be loaded for a request, over all groups of layers; what is missing is noted."""

import time

from vllm.v1.request import Request

from lmkv.vllm.events import Events
from lmkv.vllm.groups import Groups, Windows
from lmkv.vllm.lookup import Lookup, Run
from lmkv.vllm.meter import Meter
from lmkv.vllm.stores import StorePlanner


class Finder:
    """See the module. Scheduler thread only; waits for the filesystem as ``Lookup`` does."""

    def __init__(
        self,
        lookup: Lookup,
        windows: Windows,
        groups: Groups,
        stores: StorePlanner,
        events: Events,
        meter: Meter,
        block_tokens: int,
    ) -> None:
        self._lookup = lookup
        self._windows = windows
        self._groups = groups
        self._stores = stores
        self._events = events
        self._meter = meter
        self._block_tokens = block_tokens

    def find(
        self, request: Request, first_block: int, *, may_load: bool, may_store: bool
    ) -> Run | None:
        """The chunks behind a local hit of ``first_block`` blocks; none unless it ``may_load``.
        None while the filesystem has not answered.

        What is not in the directory is stored again when it is computed, if it ``may_store``.
        """
        hashes, stores = request.block_hashes, self._stores
        if may_store:
            # Blocks in vLLM's prefix cache need not be in the directory: a store may have been
            # dropped, or they were generated. What this process stored or saw is known.
            there = self._lookup.present(stores.unknown(hashes, first_block))
            if there is None:
                return None
            stores.know(there)
        if not may_load:
            # All of it is computed; what vanished from the directory is to be stored then.
            keys = stores.keys_between(request, first_block, len(hashes)) if may_store else []
            there = self._lookup.present(keys)
            if there is None:
                return None
            self._events.gone(set(keys).difference(there))
            stores.doubt(keys)
            stores.know(there)
            return Run()
        # At least the last token is left to compute: its logits are wanted.
        limit = min((request.num_tokens - 1) // self._block_tokens, len(hashes))
        begin = time.monotonic()
        chunks = self._lookup.find(hashes, first_block, limit)
        loadable = None if chunks is None else self.all_groups(chunks, first_block)
        self._meter.observe("lookup_seconds", time.monotonic() - begin)
        if chunks is None or loadable is None:
            return None
        # What was evicted is stored again when it is computed. The first miss ends the search,
        # so the chunks behind it are in doubt too.
        self._events.gone(self._behind(request, chunks, first_block, limit)[:1])
        stores.doubt(self._behind(request, loadable, first_block, limit))
        stores.know(chunks.keys)
        if loadable and len(self._groups) > 1:
            stores.know(self._groups.keys_beside(loadable, first_block))
        return loadable

    def begin_request(self, since: float, worth: float) -> None:
        """What is found next is found for a request that has waited for the remote tier since then,
        in which it is worth waiting for so many seconds.
        """
        self._lookup.begin_request(since, worth)

    def is_remote(self, key: bytes) -> bool:
        """Whether a chunk was found in the remote tier and in no directory."""
        return self._lookup.is_remote(key)

    def all_groups(self, run: Run, first_block: int) -> Run | None:
        """What of ``run``, which the first group has, can be loaded for all of them."""
        return self._windows.loadable(run, first_block)

    def _behind(self, request: Request, run: Run, first_block: int, limit: int) -> list[bytes]:
        """Keys of what is behind ``run``, up to block ``limit``."""
        return self._stores.keys_between(request, run.end if run else first_block, limit)
