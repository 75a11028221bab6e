"""Extended XYZ, plain or gzip: read in pieces of some megabytes by compiled code, any span of bytes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atomsieve.errors import DataError
from atomsieve.native import text_library
from atomsieve.structures.block import Block, build_block
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.extxyz_ase import parse_with_ase, read_through_ase
from atomsieve.structures.formats.extxyz_sink import DIALECTS, ExtxyzSink
from atomsieve.structures.formats.pieces import PIECE, Pieces
from atomsieve.structures.item import BadItem, Item, ReadRequest

CONTEXT = 65536
"""Bytes before a span in which the line before it is looked for."""
BY_ASE = "read by ASE, one by one: the fast reader does not know all that the header holds"
_NO_STRUCTURE = "lines that belong to no structure"
_CUT = "the file ends within a structure"


def measure_extent(path: Path) -> int:
    """Return the bytes of a plain file; 0 for a compressed one, and without compiled code: they are read whole."""
    if text_library() is None:
        return 0
    with path.open("rb") as file:
        return 0 if file.read(2) == b"\x1f\x8b" else path.stat().st_size


def read_extxyz(request: ReadRequest) -> Iterator[Block | Item | BadItem]:
    """Yield the frames of a file that begin in a span of it. One that is damaged is a `BadItem`, and the next is found.

    Each block states where its first frame begins and where the frame after its last one begins, in bytes.

    Raises
    ------
    DataError
        if a whole file holds no frame at all.
    """
    if text_library() is None:
        yield from read_through_ase(request)
        return
    reader = _SpanReader(request)
    held: Block | None = None  # where it ends is known when the next one begins
    for block in reader:
        if held is not None:
            held.stop = block.start
            yield held
        held = block
    if held is None:
        return
    held.stop = max(held.stop, reader.end)
    if reader.lost_from_start and not reader.found:
        raise DataError(f"{request.path}, {held.bad[0][1].detail}")
    yield held


class _SpanReader:
    """Iterates over the blocks of a span.

    Attributes
    ----------
    end : byte where the frame after the last one begins.
    found : frames were found, whole or not.
    lost_from_start : the whole file is read, and it does not begin with a frame.
    """

    def __init__(self, request: ReadRequest) -> None:
        self.request = request
        self.end = request.start
        self.found = self.lost_from_start = False
        self._ahead = b""

    def __iter__(self) -> Iterator[Block]:
        from atomsieve.structures.formats.extxyz_native import ENDED, FOREIGN, LOST, SPLIT, STOPPED, NativeParser

        request = self.request
        search = request.start > 0 and not request.sure
        offset = max(request.start - CONTEXT, 0) if search else request.start
        stop = -1 if request.stop is None else request.stop
        with (
            Pieces(request.path, offset) as pieces,
            NativeParser(request.path, of_file=request.start == 0) as parser,
        ):
            source = iter(pieces)
            data, final, at, line, lost, fits = b"", False, 0, 1, 0, True
            while True:
                data, final = self._grow(source, data)
                if final and pieces.damage:  # the last line may be cut within a number
                    data = data[: data.rfind(b"\n") + 1]
                if search:
                    at = _begin_line(data, request.start - offset)
                    if at < 0 and not final:
                        continue
                    at = len(data) if at < 0 else at
                    before = data[data.rfind(b"\n", 0, at - 1) + 1 : at]
                    lost, fits, search = 2, parser.fits(before), False
                while True:
                    left = (
                        0
                        if final
                        else -1
                        if pieces.compressed or pieces.size < 0
                        else max(pieces.size - offset - len(data), 0)
                    )
                    parsed = parser.parse(
                        data, at, final=final, offset=offset, line=line, left=left, stop=stop, lost=lost,
                        previous_fits=fits,
                    )  # fmt: skip
                    at, line, fits = parsed.consumed, parsed.line, parsed.previous_fits
                    lost = 0 if parsed.status != LOST else 2 if lost == 2 and parsed.block is None else 1
                    self.end = offset + at
                    if pieces.damage and parsed.status == ENDED:
                        parsed.block = self._tell_damage(parsed.block, pieces.damage, parser)
                    if parsed.block is not None:
                        self._watch(parsed.block)
                        yield parsed.block
                    if parsed.status == FOREIGN:
                        begin, end, line = parsed.foreign
                        yield self._through_ase(data[begin - offset : end - offset], begin, end, parser)
                        at = end - offset
                        self.end = end
                    elif parsed.status != SPLIT:
                        break
                if parsed.status in (STOPPED, ENDED):
                    break
                offset, data, at = offset + at, data[at:], 0
                request.tick(pieces.fraction)

    def _grow(self, source: Iterator[bytes], data: bytes) -> tuple[bytes, bool]:
        """Return the data with as much again behind them (so a large frame is parsed a few times), and if it is all."""
        parts, wanted = [data, self._ahead], max(len(data), PIECE) - len(self._ahead)
        self._ahead = b""
        while (piece := next(source, None)) is not None:
            if wanted <= 0:
                self._ahead = piece  # so that the last piece is known to be the last
                break
            parts.append(piece)
            wanted -= len(piece)
        return b"".join(parts), piece is None

    def _watch(self, block: Block) -> None:
        if not self.found and self.request.start == 0 and not len(block):
            reasons = {bad.reason for _, bad in block.bad}
            self.lost_from_start = reasons == {_NO_STRUCTURE}
        self.found = self.found or len(block) > 0 or not self.lost_from_start

    def _through_ase(self, text: bytes, start: int, stop: int, parser: Any) -> Block:
        one = parse_with_ase(text.decode(errors="replace"), f"{self.request.path}: frame {parser.frame}")
        parser.frame += 1
        self.found = True
        block = build_block([one])
        block.start, block.stop = start, stop
        block.notes[BY_ASE] = 1
        return block

    def _tell_damage(self, block: Block | None, damage: str, parser: Any) -> Block:
        """Return the last block with a structure that could not be read since the compressed data end there."""
        if block is not None and block.bad and block.bad[-1][1].reason == _CUT:
            place, bad = block.bad[-1]
            block.bad[-1] = (place, BadItem(bad.reason, bad.where, f"{bad.detail}; {damage}"))
            return block
        where = f"{self.request.path}: frame {parser.frame}"
        parser.frame += 1
        if block is None:
            block = build_block([])
            block.start = block.stop = self.end
        block.bad.append((block.read, BadItem(_CUT, where, damage)))
        return block


def _begin_line(data: bytes, at: int) -> int:
    """Return where the first line begins at `at` or later, -1 if the data end before that."""
    if at == 0 or data[at - 1 : at] == b"\n":
        return at
    return data.find(b"\n", at) + 1 or -1


ROW = Format(
    name="extxyz",
    about="extended XYZ",
    endings=(".extxyz", ".xyz"),
    read=read_extxyz,
    sink=ExtxyzSink,
    compressed=True,
    compresses=True,
    holds_info=True,
    extent=measure_extent,
    dialects=tuple(DIALECTS),
)
