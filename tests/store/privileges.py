"""Threads to which permissions apply, though they are root's."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Set(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def without_capabilities() -> Iterator[None]:
    """Let a user's permissions apply to this thread, and for good to those that it begins."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before, none = _Header(_VERSION_3, 0), (_Set * 2)(), (_Set * 2)()
    if libc.capget(ctypes.byref(header), before) != 0:
        pytest.skip(f"capget: {os.strerror(ctypes.get_errno())}")
    for one, had in zip(none, before, strict=True):
        one.permitted, one.inheritable = had.permitted, had.inheritable
    assert libc.capset(ctypes.byref(header), none) == 0
    try:
        yield
    finally:
        assert libc.capset(ctypes.byref(header), before) == 0
