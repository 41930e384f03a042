"""Which chunks a remote tier has, without waiting for it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from lmkv._C import Directory
from lmkv.errors import ConfigError
from lmkv.remote.store import Place, RemoteStore, open_store
from lmkv.remote.threads import end_at_exit

# How long an answer is believed. A chunk that has gone meanwhile is a miss of its load; one that
# has come is not loaded yet.
PRESENT_SECONDS = 60.0
ABSENT_SECONDS = 5.0

# Answers that are remembered: about 150 bytes each.
REMEMBERED = 1 << 17

# Keys of one question.
BATCH_KEYS = 256

# Keys that wait to be asked for: then the oldest are dropped, for which nobody waits any more.
MOST_WANTED = 1 << 13

# How long a request waits for answers, all its questions together: so many times what an answer has
# taken lately, within bounds. Computing goes on without them then; they are of use to the next.
PATIENCE = 8.0
SHORTEST_WAIT_SECONDS = 0.02
LONGEST_WAIT_SECONDS = 0.25

# After so many questions in a row that failed, or took so long, nobody waits: one is asked again,
# with nobody waiting, after a pause that is twice as long each time.
FAILURES = 3
HANGS_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0

# How long the end waits for the thread, which may be in a call of the client.
JOIN_SECONDS = 2.0


class Presence(Protocol):
    """Says what is there. Calls block."""

    def present(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether all ranks' parts of each chunk are there. Raises whatever its library does."""

    def close(self) -> None:
        """Give everything back."""


class StorePresence:
    """Of a remote engine."""

    def __init__(self, place: Place, namespace: bytes, ranks: int) -> None:
        """Raises as ``open_store``, and blocks as long."""
        self._place = place
        self._namespace = namespace
        self._ranks = ranks
        self._store: RemoteStore = open_store(place)

    def present(self, keys: Sequence[bytes]) -> list[bool]:
        ranks = range(self._ranks)
        names = [self._place.name_of(self._namespace, rank, key) for key in keys for rank in ranks]
        answers = self._store.exists(names)
        starts = range(0, len(names), self._ranks)
        return [all(answers[start : start + self._ranks]) for start in starts]

    def close(self) -> None:
        self._store.close()


class DirectoryPresence:
    """Of a directory that hosts share."""

    def __init__(self, place: Place, namespace: bytes, ranks: int) -> None:
        self._directory = Directory(root=place.directory, namespace=namespace, ranks=ranks)

    def present(self, keys: Sequence[bytes]) -> list[bool]:
        return self._directory.present(list(keys))

    def close(self) -> None:
        """Nothing to do."""


def open_presence(place: Place, namespace: bytes, ranks: int) -> Presence:
    """What is in the remote tier at ``place``. Blocks."""
    kind = DirectoryPresence if place.directory else StorePresence
    return kind(place, namespace, ranks)


class RemoteLookup:
    """See the module. ``leading`` and ``present`` are for one thread and return at once; a thread
    of its own asks the client, which it also makes.
    """

    def __init__(
        self,
        open_presence: Callable[[], Presence],
        say: Callable[[str], None] = lambda problem: None,  # noqa: ARG005
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``say``: for the log, why nothing is found, and "" once it is again. From the thread."""
        self._open = open_presence
        self._say = say
        self._clock = clock
        self._lock = threading.Condition()  # of all below; never held across a call of the client
        self._known: OrderedDict[bytes, tuple[bool, float]] = OrderedDict()  # until when
        self._wanted: OrderedDict[bytes, None] = OrderedDict()  # to be asked, the newest last
        self._asked: set[bytes] = set()  # just now
        self._asked_at = 0.0
        self._not_awaited: set[bytes] = set()  # of both: waited for no longer
        self._deadline = 0.0  # of the request that asks
        self._usual = SHORTEST_WAIT_SECONDS / PATIENCE  # what an answer takes
        self._failures = 0
        self._pause = 0.0
        self._again_at = 0.0
        self._is_open = False
        self._is_off = False
        self._given_up = 0
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="lmkv-lookup", daemon=True)
        self._thread.start()
        end_at_exit(self)

    # -- the scheduler's side --------------------------------------------------------------------

    def begin_request(self, since: float, worth: float = LONGEST_WAIT_SECONDS) -> None:
        """What is asked from here on is asked for one request, which first asked at ``since`` (of
        the clock) and for which answers are worth so many seconds.
        """
        with self._lock:
            usual = max(PATIENCE * self._usual, SHORTEST_WAIT_SECONDS)
            self._deadline = since + min(usual, LONGEST_WAIT_SECONDS, worth)

    def leading(self, keys: Sequence[bytes]) -> int | None:
        """How many of ``keys`` are there, one after the other; None if that is not known yet."""
        answers = self.present(keys)
        if answers is None:
            return None
        return answers.index(False) if False in answers else len(answers)

    def present(self, keys: Sequence[bytes]) -> list[bool] | None:
        """Whether each is there; None if that is not known yet. What is not known in time, or while
        the tier is out of service, is taken for absent.
        """
        with self._lock:
            now = self._clock()
            unknown = [key for key in keys if not self._is_known(key, now)]
            if unknown and self._should_wait(unknown, now):
                return None
            return [self._is_known(key, now) and self._known[key][0] for key in keys]

    def _is_known(self, key: bytes, now: float) -> bool:
        known = self._known.get(key)
        return known is not None and now < known[1]

    def _should_wait(self, keys: Sequence[bytes], now: float) -> bool:
        """Have them asked for, if that is worth it."""
        if self._is_out(now):
            return False
        for key in reversed(keys):  # the head of a prompt is asked for before its tail
            if key not in self._asked:
                self._wanted[key] = None
                self._wanted.move_to_end(key)
        while len(self._wanted) > MOST_WANTED:
            dropped, _ = self._wanted.popitem(last=False)
            self._not_awaited.discard(dropped)
        self._lock.notify()
        if self._failures >= FAILURES:  # a trial
            return False
        if now < self._deadline:
            return True
        new = [key for key in keys if key not in self._not_awaited]
        self._not_awaited.update(new)
        self._given_up += len(new)
        return False

    def _is_out(self, now: float) -> bool:
        if self._asked and now - self._asked_at > LONGEST_WAIT_SECONDS:
            return True  # it hangs
        if self._is_off or not self._is_open:
            return True
        return self._failures >= FAILURES and now < self._again_at

    def switch(self, *, on: bool) -> None:
        """Whether anything of it can be loaded: if not, nothing is found."""
        with self._lock:
            self._is_off = not on

    @property
    def is_out(self) -> bool:
        """Whether the tier is not worth a question: nothing of it is found."""
        with self._lock:
            return self._is_out(self._clock())

    def forget(self) -> None:
        """Ask again for everything."""
        with self._lock:
            self._known.clear()

    @property
    def given_up(self) -> int:
        """How many chunks were taken for absent because no answer came in time."""
        return self._given_up

    def close(self) -> None:
        """End the thread. Returns at once."""
        with self._lock:
            self._ends = True
            self._lock.notify()

    def end(self) -> None:
        """``close``, and wait for the thread."""
        self.close()
        self._thread.join(JOIN_SECONDS)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        presence = self._connect()
        while presence is not None:
            with self._lock:
                while not self._ends and (not self._wanted or self._is_out(self._clock())):
                    self._lock.wait(1.0)
                if self._ends:
                    break
                # The newest first: somebody waits for them.
                few = min(BATCH_KEYS, len(self._wanted))
                keys = [self._wanted.popitem()[0] for _ in range(few)]
                self._asked.update(keys)
                self._asked_at = self._clock()
            self._ask(presence, keys)
        if presence is not None:
            presence.close()

    def _connect(self) -> Presence | None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                presence = self._open()
            except ConfigError as error:
                self._say(f"it cannot be used: {error}")
                return None
            except Exception as error:  # noqa: BLE001 - a library's own kinds of failure
                self._say(f"it cannot be used: {error}")
                with self._lock:
                    if self._ends or self._lock.wait_for(lambda: self._ends, pause):
                        return None
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                with self._lock:
                    self._is_open = True
                self._say("")
                return presence

    def _ask(self, presence: Presence, keys: Sequence[bytes]) -> None:
        begin = self._clock()
        answers: list[bool] = []
        why = ""
        try:
            answers = presence.present(keys)
        except Exception as error:  # noqa: BLE001 - a library's own kinds of failure
            why = str(error) or type(error).__name__
        if not why and len(answers) != len(keys):
            why = f"{len(answers)} answers to {len(keys)} questions"
        with self._lock:
            now = self._clock()
            if not why and now - begin > HANGS_SECONDS:
                why = f"an answer took {now - begin:.1f} s"
            was_out = self._failures >= FAILURES
            self._asked.difference_update(keys)
            self._not_awaited.difference_update(keys)
            if len(answers) == len(keys):
                for key, is_there in zip(keys, answers, strict=True):
                    lasts = PRESENT_SECONDS if is_there else ABSENT_SECONDS
                    self._remember(key, is_there, now + lasts)
            else:
                self._wanted.clear()
                self._not_awaited.clear()
                for key in keys:
                    self._remember(key, False, now + ABSENT_SECONDS)
            if why:
                self._failed(now)
            else:
                self._failures, self._pause = 0, 0.0
                self._usual += (now - begin - self._usual) / 8
            is_out = self._failures >= FAILURES
        if is_out and not was_out:
            self._say(f"it is not asked for a while: {why}")
        elif was_out and not is_out:
            self._say("")

    def _failed(self, now: float) -> None:
        """Caller holds the lock."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            self._again_at = now + self._pause

    def _remember(self, key: bytes, is_there: bool, until: float) -> None:
        """Caller holds the lock."""
        self._known[key] = is_there, until
        self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
