"""A TCP proxy that a test makes slow, silent, or untrue."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Between clients and ``port`` of this machine. Threads and sockets end with ``close``."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.delay = 0.0  # before each piece of an answer
        self.is_silent = False  # nothing goes through, and nothing is closed
        self.is_gone = False  # no connection is made
        self.flips = False  # a byte of every large piece of an answer
        self._ends = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close all connections there are."""
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self._ends = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                if self.is_gone:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                if self._ends:
                    return
                continue
            self._sockets += [client, server]
            for source, sink, is_answer in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pump, args=(source, sink, is_answer), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                while self.is_silent and not self._ends:
                    time.sleep(0.01)
                if is_answer and self.delay:
                    time.sleep(self.delay)
                if is_answer and self.flips and len(piece) > 4096:
                    middle = len(piece) // 2
                    piece = piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
