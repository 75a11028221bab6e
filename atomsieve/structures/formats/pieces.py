"""Pieces of a plain or gzip file, read (and decompressed) by a thread beside the parser."""

from __future__ import annotations

import io
import queue
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

PIECE = 4 << 20
_RAW = 1 << 20


class Pieces:
    """Iterates over the bytes of a file, some megabytes at a time; a context manager that ends its thread.

    A gzip file of several members is read whole. What lies before a place where compressed data are damaged is given;
    then iteration ends, and `damage` says why.

    Attributes
    ----------
    size : bytes of the file on disk, -1 of a pipe; `compressed`: they are gzip.
    damage : empty, or why the file could not be read to its end.
    """

    def __init__(self, path: Path, start: int = 0, piece: int = PIECE) -> None:
        self.damage = ""
        self._file: io.BufferedReader = path.open("rb")
        self.size = path.stat().st_size if self._file.seekable() else -1
        self.compressed = self._file.peek(2)[:2] == b"\x1f\x8b"  # a pipe cannot go back
        if start:
            self._file.seek(start)
        self._piece, self._read = piece, start
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(2)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atomsieve-pieces", daemon=True)

    @property
    def fraction(self) -> float:
        """Fraction of the file that was read."""
        return min(self._read / max(self.size, 1), 1.0)

    def __enter__(self) -> Pieces:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def _run(self) -> None:
        try:
            for piece in self._unpack() if self.compressed else self._plain():
                self._read = self._file.tell() if self.size >= 0 else 0
                while not self._stopped.is_set():
                    try:
                        self._queue.put(piece, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if self._stopped.is_set():
                    return
            end: BaseException | None = None
        except BaseException as error:  # raised where the pieces are used
            end = error
        while not self._stopped.is_set():
            try:
                self._queue.put(end, timeout=0.1)
                return
            except queue.Full:
                continue

    def _plain(self) -> Iterator[bytes]:
        while piece := self._file.read(self._piece):
            yield piece

    def _unpack(self) -> Iterator[bytes]:
        unpacker, inside, parts, held = zlib.decompressobj(wbits=31), False, [], 0
        rest = b""
        while True:
            raw = rest or self._file.read(_RAW)
            if not raw:
                if inside:
                    self.damage = "the compressed data end early"
                break
            try:
                out = unpacker.decompress(raw, self._piece)
            except zlib.error as error:
                # Zeros, or anything else, behind a whole member is padding, as gzip itself takes it.
                if inside or not raw.strip(b"\0"):
                    self.damage = f"the compressed data are damaged ({error})" if inside else ""
                else:
                    self.damage = "what follows the compressed data is not gzip"
                break
            inside = True
            if unpacker.eof:
                rest = unpacker.unused_data.lstrip(b"\0")
                unpacker, inside = zlib.decompressobj(wbits=31), False
            else:
                rest = unpacker.unconsumed_tail
            if out:
                parts.append(out)
                held += len(out)
            if held >= self._piece:
                yield b"".join(parts)
                parts, held = [], 0
        if held:
            yield b"".join(parts)
