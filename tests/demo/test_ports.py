"""Ports: free ones, wanted ones, taken ones."""

from __future__ import annotations

import os
import socket

import pytest

pytest.importorskip("psutil", reason="the demo's dependencies are not installed")

from lmkv.demo import ports
from lmkv.demo.errors import DemoError


def test_free_ports_are_different_and_free() -> None:
    chosen = ports.choose(8)
    assert len(set(chosen)) == 8
    for port in chosen:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_base_gives_consecutive_ports() -> None:
    for base in range(42000, 43000, 10):
        try:
            assert ports.choose(3, base) == [base, base + 1, base + 2]
        except DemoError:
            continue  # somebody uses one of these
        return
    pytest.fail("no three free ports in a row")


def test_a_taken_port_is_named_with_who_has_it() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(DemoError, match=f"port {port} is taken by process {os.getpid()}"):
            ports.choose(1, port)


def test_a_port_that_cannot_exist_is_an_error() -> None:
    with pytest.raises(DemoError, match="there is no port 65536"):
        ports.choose(2, 65535)
