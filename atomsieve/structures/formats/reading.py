"""Reads files of any format as blocks of structures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.block import Block, gather_blocks
from atomsieve.structures.formats.registry import FORMATS
from atomsieve.structures.formats.scan import find_format
from atomsieve.structures.item import BadItem, Item, ReadRequest

EMPTY = "a file without a structure"
BAD_FILE = "a file that cannot be read, or not to its end"


def read_blocks(request: ReadRequest, kind: str, *, skip_bad_file: bool = False) -> Iterator[Block]:
    """Yield the structures of a file or of a span of it, some thousands at a time; otherwise as `read_found`."""
    yield from gather_blocks(read_found(request, kind, skip_bad_file=skip_bad_file))


def read_found(request: ReadRequest, kind: str, *, skip_bad_file: bool = False) -> Iterator[Block | Item | BadItem]:
    """Yield what the reader of a format finds in a file or in a span of it: blocks, or single structures.

    A file without a structure is one structure that cannot be read; with `skip_bad_file`, so is what a file holds from
    where it cannot be read on.

    Raises
    ------
    DataError
        if the file cannot be read at all, or from some place on.
    UsageError
        if the format is only written.
    """
    read = FORMATS[kind].read
    if read is None:
        raise UsageError(f"format {kind} is only written; {request.path} cannot be read")
    found = False
    request = with_reference(request)
    try:
        for one in read(request):
            found = found or not isinstance(one, Block) or one.read > 0
            yield one
    except DataError as error:
        if not skip_bad_file:
            raise
        yield BadItem(BAD_FILE, str(request.path), str(error))
        return
    if not found and request.start == 0 and request.stop is None:
        yield BadItem(EMPTY, str(request.path))


def with_reference(request: ReadRequest) -> ReadRequest:
    """Return the request with the first structure of its topology, if that is a file of structures.

    Raises
    ------
    DataError
        if the topology does not exist, or holds no structure.
    """
    if request.topology is None or request.reference is not None:
        return request
    if not request.topology.exists():
        raise DataError(f"{request.topology} does not exist")
    kind = find_format(request.topology)
    read = FORMATS[kind].read if kind is not None else None
    if read is None:
        return request
    for block in gather_blocks(read(ReadRequest(request.topology, elements=request.elements))):
        if len(block):
            atoms, scale = slice(0, int(block.ptr[1])), block.units.factor("length")
            positions, cell = block.positions[atoms] * scale, block.cell[0] * scale
            first = Item(block.numbers[atoms], positions, cell, block.pbc[0], block.places[0])
            return replace(request, reference=first)
    raise DataError(f"{request.topology} holds no structure that can be read")
