"""Reads files of any format as blocks of structures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.block import Block, build_block, gather_blocks
from atomsieve.structures.formats.registry import FORMATS
from atomsieve.structures.formats.scan import find_format
from atomsieve.structures.item import BadItem, Item, ReadRequest

EMPTY = "a file without a structure"


def read_blocks(request: ReadRequest, kind: str) -> Iterator[Block]:
    """Yield the structures of a file or of a span of it, some thousands at a time."""
    read = FORMATS[kind].read
    if read is None:
        raise UsageError(f"format {kind} is only written; {request.path} cannot be read")
    found = False
    for block in gather_blocks(read(with_reference(request))):
        found = found or block.read > 0
        yield block
    if not found and request.start == 0 and request.stop is None:
        yield build_block([BadItem(EMPTY, str(request.path))])


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
