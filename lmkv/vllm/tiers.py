"""Lookups over the directories and the remote tier behind them."""

from collections import OrderedDict
from collections.abc import Sequence

from lmkv._C import Directory, LookupService
from lmkv.remote.lookup import RemoteLookup

# Keys that are remembered to be in the remote tier alone: about 100 bytes each.
REMEMBERED = 1 << 17


class TieredLookup:
    """What ``lmkv._C.LookupService`` answers of the directories, with what the remote tier has.
    Scheduler thread only; waits for the filesystem as that does, and for the remote tier never.
    """

    def __init__(self, directory: Directory, remote: RemoteLookup) -> None:
        self._local = LookupService(directory)
        self._remote = remote
        self._remote_alone: OrderedDict[bytes, None] = OrderedDict()

    def lookup(self, keys: list[bytes], patience_s: float) -> int | None:
        """How many of ``keys`` are there, in either, one after the other; None if that is not
        known yet.
        """
        length = 0
        while length < len(keys):
            found = self._local.lookup(keys[length:] if length else keys, patience_s)
            if found is None:
                return None
            self._note(keys[length : length + found], remote=False)
            length += found
            if length == len(keys):
                break
            rest = keys[length:]
            more = self._remote.leading(rest)
            if more is None:
                return None
            self._note(rest[:more], remote=True)
            length += more
            if not more:
                break
        return length

    def present(self, keys: list[bytes], patience_s: float) -> list[bool] | None:
        """Whether each of ``keys`` is there, in either; None if that is not known yet."""
        there = self._local.present(keys, patience_s)
        if there is None:
            return None
        missing = [key for key, is_there in zip(keys, there, strict=True) if not is_there]
        answers = self._remote.present(missing) if missing else []
        if answers is None:
            return None
        self._note([k for k, is_there in zip(keys, there, strict=True) if is_there], remote=False)
        self._note([k for k, is_there in zip(missing, answers, strict=True) if is_there])
        remote = iter(answers)
        return [is_there or next(remote) for is_there in there]

    def _note(self, keys: Sequence[bytes], *, remote: bool = True) -> None:
        if remote:
            self._remote_alone.update(dict.fromkeys(keys))
            while len(self._remote_alone) > REMEMBERED:
                self._remote_alone.popitem(last=False)
        elif self._remote_alone:
            for key in keys:
                self._remote_alone.pop(key, None)

    def is_remote(self, key: bytes) -> bool:
        """Whether a chunk was found in the remote tier and in no directory."""
        return key in self._remote_alone

    def forget(self) -> None:
        """Ask again for everything."""
        self._local.forget()
        self._remote.forget()

    def given_up(self) -> int:
        """How many chunks were taken for absent because there was no answer in time."""
        return self._local.given_up() + self._remote.given_up
