"""Threads of a worker that carry out what its engine asks of a remote engine."""

import threading
import time
from collections.abc import Callable, Sequence

from lmkv._C import Engine, RemoteLane, RemoteOrder, RemoteOrderKind, RemoteResult
from lmkv.errors import ConfigError
from lmkv.remote.store import Item, RemoteError, RemoteStore
from lmkv.remote.threads import end_at_exit

# What a thread takes at once: chunks of one batch are carried side by side.
BATCH_BYTES = 64 << 20

# Chunks of one batch do not wait for those of another.
THREADS_OF_A_LANE = 2

# How long a thread waits for orders before it looks around.
WAIT_SECONDS = 1.0

# Before a client that could not be made is tried again; twice as long each time.
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0

# How long the end waits for threads that are in a call of the client.
JOIN_SECONDS = 2.0


class Budget:
    """So many bytes a second, of all who share it; 0: no limit. Any thread."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, size: int) -> float:
        """Seconds to wait before so many bytes are moved: what was spent before takes its time."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + size / self._rate
            return begin - now


class Carriers:
    """See the module. The client is made by a thread of its own, which may take long; until then
    all orders fail at once, so that nobody waits for them. ``stop`` before the engine is closed,
    ``join`` after that.
    """

    def __init__(
        self,
        engine: Engine,
        open_store: Callable[[], RemoteStore],
        name_of: Callable[[bytes], str],
        say: Callable[[str], None],
        *,
        bandwidth: int = 0,
    ) -> None:
        """``name_of``: a chunk's name by its key. ``say``: for the log, why the client cannot be
        made, or that it was. ``bandwidth``: bytes a second of each lane, at most; 0: no limit.
        """
        self._engine = engine
        self._open = open_store
        self._name_of = name_of
        self._say = say
        self._budgets = {lane: Budget(bandwidth) for lane in RemoteLane}
        self._store: RemoteStore | None = None
        self._stopping = threading.Event()
        self._tried = threading.Event()  # to make the client
        lanes = [lane for lane in RemoteLane for _ in range(THREADS_OF_A_LANE)]
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name="lmkv-remote", daemon=True)
            for lane in lanes
        ]
        self._threads.append(
            threading.Thread(target=self._connect, name="lmkv-remote", daemon=True)
        )
        for thread in self._threads:
            thread.start()
        end_at_exit(self)

    @property
    def is_connected(self) -> bool:
        return self._store is not None

    def stop(self) -> None:
        """Take no more orders. Returns at once."""
        self._stopping.set()

    def end(self) -> None:
        """``stop``, and wait for the threads."""
        self.stop()
        self._join_threads()

    def _join_threads(self) -> bool:
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for the threads, and give the client back, unless one hangs in a call of it."""
        if not self._join_threads() or self._store is None:
            return
        closing = threading.Thread(target=self._close, args=(self._store,), daemon=True)
        closing.start()
        closing.join(JOIN_SECONDS)

    def _close(self, store: RemoteStore) -> None:
        try:
            store.close()
        except Exception as error:  # noqa: BLE001 - a library's own kinds of failure
            self._say(f"it was not closed: {error}")

    def _connect(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                store = self._opened()
            except (RemoteError, ConfigError) as error:
                self._say(f"it cannot be used: {error}")
                if isinstance(error, ConfigError):  # which will not be another one in a while
                    self._tried.set()
                    return
            except Exception as error:  # noqa: BLE001 - a library's own kinds of failure
                self._say(f"it cannot be used: {type(error).__name__}: {error}")
            else:
                self._store = store
                self._tried.set()
                self._say("")
                return
            self._tried.set()
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _opened(self) -> RemoteStore:
        store = self._open()
        try:
            store.register(*self._engine.slab_memory())
        except Exception:
            self._close(store)
            raise
        return store

    def _run(self, lane: RemoteLane) -> None:
        budget = self._budgets[lane]
        # Loads are computed meanwhile; stores can wait, as far as there are slabs for them.
        while lane is RemoteLane.STORES and not self._stopping.is_set():
            if self._tried.wait(WAIT_SECONDS):
                break
        while not self._stopping.is_set():
            orders = self._engine.take_remote(lane, BATCH_BYTES, WAIT_SECONDS)
            if not orders:
                continue
            if wait := budget.spend(sum(order.bytes for order in orders)):
                self._stopping.wait(wait)
            self._carry(orders)

    def _carry(self, orders: Sequence[RemoteOrder]) -> None:
        """Whatever happens, every order is finished, once."""
        left = {order.ticket: order for order in orders}

        def finish(ticket: int, result: RemoteResult, why: str = "") -> None:
            if left.pop(ticket, None) is not None:
                self._engine.finish_remote(ticket, result, why)

        try:
            self._carry_with(self._connected(), orders, finish)
        except Exception as error:  # noqa: BLE001 - a library's own kinds of failure
            for ticket in list(left):
                finish(ticket, RemoteResult.FAILED, str(error) or type(error).__name__)
        for ticket in list(left):
            finish(ticket, RemoteResult.FAILED, "the client did not say")

    def _connected(self) -> RemoteStore:
        if self._store is None:
            raise RemoteError("the client is not connected yet")
        return self._store

    def _carry_with(
        self,
        store: RemoteStore,
        orders: Sequence[RemoteOrder],
        finish: Callable[[int, RemoteResult, str], None],
    ) -> None:
        # Two orders may be for one chunk.
        tickets: dict[Item, list[int]] = {}
        items: dict[RemoteOrderKind, list[Item]] = {kind: [] for kind in RemoteOrderKind}
        for order in orders:
            name = self._name_of(order.key)
            if order.kind is RemoteOrderKind.REMOVE:
                finish(order.ticket, store.remove(name), "")
                continue
            item = Item(name, order.address, order.bytes)
            waiting = tickets.setdefault(item, [])
            waiting.append(order.ticket)
            if len(waiting) == 1:
                items[order.kind].append(item)

        def done(item: Item, result: RemoteResult, why: str) -> None:
            for ticket in tickets[item]:
                finish(ticket, result, why)

        if gets := items[RemoteOrderKind.GET]:
            store.get(gets, done)
        if puts := items[RemoteOrderKind.PUT]:
            store.put(puts, done)
