"""File formats of structures: each file here reads one format as a stream of `Item`, and writes it if it can."""

from atomsieve.structures.formats.base import FileSink, Format, StructureSink, TextSink, WriteOptions
from atomsieve.structures.formats.reading import read_blocks
from atomsieve.structures.formats.registry import (
    FORMATS,
    find_writer,
    open_sink,
    readable,
    writable_endings,
)
from atomsieve.structures.formats.scan import find_files, find_format
from atomsieve.structures.item import BadItem, Item, ReadRequest

__all__ = [
    "FORMATS",
    "BadItem",
    "FileSink",
    "Format",
    "Item",
    "ReadRequest",
    "StructureSink",
    "TextSink",
    "WriteOptions",
    "find_files",
    "find_format",
    "find_writer",
    "open_sink",
    "read_blocks",
    "readable",
    "writable_endings",
]
