"""Ragged batches of structures; files of every kind in and out; generators."""

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import FIELDS, Field
from atomsieve.structures.generate import generate_random_boxes, generate_rattled, generate_substituted
from atomsieve.structures.manifest import SourceInfo
from atomsieve.structures.reader import StructureReader, open_structures
from atomsieve.structures.writer import StructureWriter, write_structures

__all__ = [
    "FIELDS",
    "Field",
    "SourceInfo",
    "StructureBatch",
    "StructureReader",
    "StructureWriter",
    "generate_random_boxes",
    "generate_rattled",
    "generate_substituted",
    "open_structures",
    "write_structures",
]
