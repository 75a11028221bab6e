"""Ragged batches of structures; files of every kind in and out; generators."""

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import FIELDS, Field

__all__ = ["FIELDS", "Field", "StructureBatch"]
