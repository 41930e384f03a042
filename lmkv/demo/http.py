"""How the demo talks to engines."""

from __future__ import annotations

import functools

import httpx


@functools.cache
def client() -> httpx.Client:
    """The one client of this process, for any thread: making one costs more than a request.

    No proxy, since that must not see loopback requests; and a connection each, because engines
    come and go.
    """
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
