"""Ragged batches of structures; files of every kind in and out; generators."""

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.dataset.open import open_structures
from atomsieve.structures.dataset.reader import FileReader
from atomsieve.structures.dataset.writer import StructureWriter, write_structures
from atomsieve.structures.fields import FIELDS, Field
from atomsieve.structures.generate import generate_random_boxes, generate_rattled, generate_substituted
from atomsieve.structures.interface import PartInfo, StructureReader
from atomsieve.structures.source import SourceInfo

__all__ = [
    "FIELDS",
    "Field",
    "FileReader",
    "PartInfo",
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
