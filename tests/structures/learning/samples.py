"""Conversion of one file and what came of it, for the tests of formats of other programs."""

from __future__ import annotations

from pathlib import Path

from atomsieve.structures import SourceInfo, StructureBatch, open_structures
from atomsieve.structures.convert import ConvertOptions, ConvertReport, Input, convert

SOURCE = SourceInfo("a", "PBE")


def convert_file(path: Path, out: Path, source: SourceInfo | None = SOURCE, **options: object) -> ConvertReport:
    return convert([Input(path, source)], out, ConvertOptions(overwrite=True, **options))  # type: ignore[arg-type]


def read_dataset(path: Path) -> StructureBatch:
    with open_structures(path) as reader:
        return reader.read(0, len(reader)).validate()


def convert_and_read(path: Path, **options: object) -> StructureBatch:
    out = path.with_name(f"{path.name}.converted.bp")
    convert_file(path, out, **options)
    return read_dataset(out)
