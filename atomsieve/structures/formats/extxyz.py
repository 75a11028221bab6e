"""Extended XYZ, plain or gzip."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atomsieve.errors import DataError
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import TextSink
from atomsieve.structures.item import BadItem, Item, ReadRequest, Tick, item_from_atoms, open_with_progress

log = logging.getLogger(__name__)

LARGEST_FRAME = 50_000_000


def read_extxyz(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the frames of an (extended) XYZ file. A frame that cannot be parsed is `BadItem`, and the next one is read.

    Raises
    ------
    DataError
        if a line that must count atoms does not: where the next frame begins cannot be known then.
    """
    path, tick = request.path, request.tick
    from ase.io.extxyz import read_extxyz as parse

    for frame, text in _frames(path, tick):
        where = f"{path}: frame {frame}"
        if text is None:
            yield BadItem("the file ends within a structure", where)
            continue
        try:
            found = list(parse(io.StringIO(text), index=slice(None)))
        except Exception as error:  # a parser of free text fails in every way there is
            log.debug("%s: %s", where, error, exc_info=True)
            yield BadItem(f"not readable ({type(error).__name__})", where)
            continue
        yield from (item_from_atoms(atoms, where) for atoms in found)


def _frames(path: Path, tick: Tick) -> Iterator[tuple[int, str | None]]:
    """Yield the text of each frame; None for one that is cut off by the end of the file."""
    with open_with_progress(path) as (file, fraction):
        frame = line_number = 0
        try:
            while header := file.readline():
                line_number += 1
                if not header.strip():
                    continue
                count = int(header) if header.strip().isdigit() else -1
                if not 0 <= count <= LARGEST_FRAME:
                    shown = header[:40].decode(errors="replace").strip()
                    raise DataError(f"{path}, line {line_number}: a number of atoms was expected, got {shown!r}")
                lines = [header]
                lines += [line for _ in range(count + 1) if (line := file.readline())]
                line_number += len(lines) - 1
                whole = len(lines) == count + 2
                yield frame, b"".join(lines).decode(errors="replace") if whole else None
                frame += 1
                tick(fraction())
        except (EOFError, OSError) as error:  # the compressed stream ends early or is damaged
            log.debug("%s: %s", path, error)
            yield frame, None


class ExtxyzSink(TextSink):
    """Extended XYZ with energy, forces, stress, charge, spin, id and source; coordinates to 1e-8 Angstrom."""

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures."""
        from ase.io.extxyz import write_extxyz

        write_extxyz(self.text, self.to_ase(batch, info))
