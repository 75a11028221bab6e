"""Readers of other people's files: each turns a file into a stream of `Item`, bounded in memory."""

from atomsieve.structures.formats.registry import FORMATS, find_files, format_of, read_items
from atomsieve.structures.item import Bad, Item

__all__ = ["FORMATS", "Bad", "Item", "find_files", "format_of", "read_items"]
