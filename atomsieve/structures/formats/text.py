"""Text formats that ASE parses: extended XYZ, CIF, POSCAR."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atomsieve.errors import DataError
from atomsieve.structures.item import Bad, Item, Tick, item_from_atoms, open_counted

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

LARGEST_FRAME = 50_000_000
PARTIAL = 1e-3


def read_extxyz(path: Path, tick: Tick) -> Iterator[Item | Bad]:
    """Yield the frames of an (extended) XYZ file. A frame that cannot be parsed is `Bad`, and the next one is read.

    Raises
    ------
    DataError
        if a line that must count atoms does not: where the next frame begins cannot be known then.
    """
    from ase.io.extxyz import read_extxyz as parse

    for frame, text in _frames(path, tick):
        where = f"{path}: frame {frame}"
        if text is None:
            yield Bad("the file ends within a structure", where)
            continue
        try:
            found = list(parse(io.StringIO(text), index=slice(None)))
        except Exception as error:  # a parser of free text fails in every way there is
            log.debug("%s: %s", where, error, exc_info=True)
            yield Bad(f"not readable ({type(error).__name__})", where)
            continue
        yield from (item_from_atoms(atoms, where) for atoms in found)


def _frames(path: Path, tick: Tick) -> Iterator[tuple[int, str | None]]:
    """Yield the text of each frame; None for one that is cut off by the end of the file."""
    with open_counted(path) as (file, fraction):
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


def read_cif(path: Path, tick: Tick) -> Iterator[Item | Bad]:
    """Yield the structures of a CIF file; one with partly occupied sites is `Bad`, as it is no structure of atoms."""
    from ase.io.cif import read_cif as parse

    for k, atoms in enumerate(_parsed(path, lambda file: list(parse(file, index=slice(None))))):
        where = str(path) if k == 0 else f"{path}: structure {k}"
        if isinstance(atoms, Bad):
            yield atoms
        elif _disordered(atoms):
            yield Bad("partly occupied sites", where)
        else:
            yield item_from_atoms(atoms, where)
    tick(1.0)


def _disordered(atoms: Atoms) -> bool:
    sites = atoms.info.get("occupancy") or {}
    return any(len(site) > 1 or abs(sum(site.values()) - 1) > PARTIAL for site in sites.values())


def read_poscar(path: Path, tick: Tick) -> Iterator[Item | Bad]:
    """Yield the one structure of a POSCAR file."""
    from ase.io.vasp import read_vasp

    for atoms in _parsed(path, lambda file: [read_vasp(file)]):
        yield atoms if isinstance(atoms, Bad) else item_from_atoms(atoms, str(path))
    tick(1.0)


def _parsed(path: Path, parse: object) -> list[Atoms | Bad]:
    """Return what a parser makes of a small text file; its warnings go to the log."""
    assert callable(parse)
    try:
        with open_counted(path) as (file, _), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = parse(io.StringIO(file.read().decode(errors="replace")))
    except Exception as error:  # a parser of free text fails in every way there is
        log.debug("%s: %s", path, error, exc_info=True)
        return [Bad(f"not readable ({type(error).__name__})", str(path))]
    for warning in caught:
        log.debug("%s: %s", path, warning.message)
    return found or [Bad("no structure in it", str(path))]
