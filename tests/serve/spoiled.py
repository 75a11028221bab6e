"""A proxy that spoils connections when it is told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Passes bytes between clients and a port of this machine, until it is told to spoil something.

    cut : given the bytes of the next answer, returns those that the client gets before the connection ends.
    hold : bytes of answers that are passed on; afterwards none is, until the server ends the connection. held : is set
    when that happens.
    """

    def __init__(self, port: int) -> None:
        self.port, self.frozen = port, 0
        self.cut: Callable[[bytes], bytes] | None = None
        self.hold, self.held = 1 << 60, threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Pass nothing on any longer over the connections that are there; new ones are sound."""
        self.frozen = len(self._pairs)

    def close(self) -> None:
        for s in (self._listening, *(s for pair in self._pairs for s in pair)):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                try:
                    there = socket.create_connection(("127.0.0.1", self.port))
                except OSError:
                    client.close()
                    continue
                number = len(self._pairs)
                self._pairs.append((client, there))
                for source, target, answers in ((client, there, False), (there, client, True)):
                    threading.Thread(target=self._pass, args=(source, target, number, answers), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, number: int, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if number < self.frozen:
                    continue
                if answers and self.cut is not None:
                    target.sendall(self.cut(data))
                    self.cut = None
                    break
                if answers and self.hold < len(data):
                    self.held.set()
                    continue
                self.hold -= len(data) if answers else 0
                target.sendall(data)
        for s in (source, target) if number >= self.frozen else ():
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    made = Proxy(port)
    try:
        yield made
    finally:
        made.close()
