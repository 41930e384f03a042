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
        self.flips = False  # a byte of every large piece of an answer
        self._ends = False
        self._sockets: list[socket.socket] = []
        self.port = 0
        self._listener: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        """Be there (again): at the same port."""
        if self._listener is not None:
            return
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Close all connections there are; whoever wants a new one is refused."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Close all connections there are."""
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self._ends = True
        self.refuse()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
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
