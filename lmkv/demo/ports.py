"""Chooses the engines' ports."""

from __future__ import annotations

import contextlib
import errno
import socket

from lmkv.demo.errors import DemoError
from lmkv.demo.launch import HOST


def choose(count: int, base: int | None = None, *, host: str = HOST) -> list[int]:
    """`count` ports: `base`, `base` + 1, ..., or free ones that the system picks.

    Raises `DemoError` naming the first of the wanted ports that is taken.
    """
    with contextlib.ExitStack() as stack:  # held together, so that none is chosen twice
        return [
            _bind(
                stack.enter_context(socket.socket()), host, 0 if base is None else base + position
            )
            for position in range(count)
        ]


def _bind(holder: socket.socket, host: str, port: int) -> int:
    # As the server will: a port in TIME_WAIT is free, a listening one is not.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port))
        holder.listen(1)
    except OverflowError:
        raise DemoError(f"there is no port {port}", hint="--port takes 1024 to 65531") from None
    except OSError as error:
        raise DemoError(_why(port, error), hint="leave --port out to get free ports") from error
    chosen: int = holder.getsockname()[1]
    return chosen


def _why(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken{_by_whom(port)}"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user"
    return f"port {port} cannot be used: {error.strerror}"


def _by_whom(port: int) -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                name = psutil.Process(connection.pid).name() if connection.pid else "?"
                return f" by process {connection.pid} ({name})"
    return ""
