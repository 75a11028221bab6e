"""CIF, plain or gzip: parsed by gemmi, expanded by the symmetry that each data block states."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import Format, TextSink
from atomsieve.structures.formats.cif_symmetry import expand_sites, find_operators
from atomsieve.structures.formats.records.geometry import HEAVY_HYDROGEN, UnusableError
from atomsieve.structures.formats.structure_text import format_cif
from atomsieve.structures.item import BadItem, Item, ReadRequest, open_with_progress

log = logging.getLogger(__name__)

CHUNK = 1 << 20
"""Bytes of data blocks that are parsed at a time, unless one block is longer."""
LARGEST_BLOCK = 1 << 28
FULL = 1e-3
CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
MAGNETIC = (
    "_space_group_symop_magn_operation.xyz",
    "_space_group_symop.magn_operation_xyz",
    "_space_group_magn.name_BNS",
)
MODULATED = ("_cell_modulation_dimension", "_space_group_ssg_name", "_space_group.ssg_name")


def read_cif(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the structures of a CIF file, one for each data block with atoms.

    Operators that a block states are applied as they stand, whether or not it names a space group; without operators
    the space group is that of the Hall symbol, the Hermann-Mauguin name or the number. Images of a site that meet are
    one atom. Partly occupied or disordered sites, atoms without positions, and magnetic, modulated or macromolecular
    CIF make a structure a `BadItem`, which names the site.
    """
    import gemmi

    path, count = request.path, 0
    try:
        with open_with_progress(path) as (file, fraction):
            for text in _split_blocks(file, path):
                try:
                    blocks = list(gemmi.cif.read_string(text))
                except (ValueError, RuntimeError) as error:
                    count += 1
                    yield BadItem("not readable (no CIF)", str(path), _tell_line(str(error)))
                    continue
                for block in blocks:
                    if block.find_values("_atom_site_label") or _holds_atoms(block):
                        where = str(path) if count == 0 else f"{path}: structure {count}"
                        count += 1
                        yield _read_block(block, where)
                request.tick(fraction())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not count:
        yield BadItem("no structure in it", str(path))
    request.tick(1.0)


def _split_blocks(file: Any, path: Path) -> Iterator[bytes]:
    """Yield whole data blocks, about `CHUNK` bytes at a time. A text field may hold lines that look like a header."""
    kept: list[bytes] = []
    size, inside = 0, False
    for line in file:
        if line.startswith(b";"):
            inside = not inside
        if size >= CHUNK and not inside and line[:5].lower() == b"data_":
            yield b"".join(kept)
            kept, size = [], 0
        kept.append(line)
        size += len(line)
        if size > LARGEST_BLOCK:
            raise DataError(f"{path}: one data block has more than {LARGEST_BLOCK:,} bytes")
    if kept:
        yield b"".join(kept)


def _tell_line(message: str) -> str:
    found = re.match(r"string:(\d+):\d+(?:\(\d+\))?: (.*)|data:(\d+):\d+(?:\(\d+\))?: (.*)", message)
    if not found:
        return message
    return f"line {found.group(1) or found.group(3)}: {found.group(2) or found.group(4)}"


def _holds_atoms(block: Any) -> bool:
    return bool(
        block.find_values("_atom_site_fract_x")
        or block.find_values("_atom_site_Cartn_x")
        or block.find_values("_atom_site.Cartn_x")
        or block.find_values("_atom_site.fract_x")
    )


def _read_block(block: Any, where: str) -> Item | BadItem:
    try:
        return _read_structure(block, where)
    except UnusableError as error:
        return BadItem(error.reason, where, error.detail)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, ZeroDivisionError) as error:
        log.debug("%s: %s", where, error, exc_info=True)
        return BadItem(f"not readable ({type(error).__name__})", where, str(error))


def _read_structure(block: Any, where: str) -> Item:
    if block.find_values("_atom_site.Cartn_x") or block.find_values("_atom_site.label_atom_id"):
        raise UnusableError("macromolecular CIF (mmCIF)", "_atom_site.Cartn_x; write it as CIF of small structures")
    for tag in MAGNETIC + MODULATED:
        if block.find_value(tag) is not None or block.find_values(tag):
            kind = "magnetic CIF" if tag in MAGNETIC else "modulated structure"
            raise UnusableError(kind, f"{tag}: its operators act on more than positions")
    cell = _read_cell(block)
    places = _read_places(block)
    labels = _column(block, "_atom_site_label", len(places)) or [str(k) for k in range(len(places))]
    kept = _check_sites(block, labels, places)
    numbers, notes = _read_elements(block, labels)
    _require_hydrogen(block, [numbers[k] for k in kept])
    rotations, shifts, told = find_operators(block)
    positions, owner = expand_sites(places[kept], rotations, shifts, cell)
    info: dict[str, Any] = {"name": block.name}
    if re.fullmatch(r"-?\d{1,18}", block.name):
        info["id"] = int(block.name)
    return Item(
        numbers=np.array([numbers[k] for k in kept], np.int64)[owner],
        positions=positions @ cell,
        cell=cell,
        pbc=np.ones(3, bool),
        where=where,
        info=info,
        note="; ".join(dict.fromkeys([*notes, *told])),
    )


def _read_cell(block: Any) -> NDArray[np.float64]:
    from ase.geometry.cell import cellpar_to_cell

    parameters = [_number(block.find_value(f"_cell_{name}")) for name in CELL]
    if not np.isfinite(parameters).all():
        missing = [f"_cell_{name}" for name, x in zip(CELL, parameters, strict=True) if not np.isfinite(x)]
        raise UnusableError("no cell", f"{missing[0]} is missing or no number")
    try:
        with np.errstate(all="ignore"):
            cell = np.asarray(cellpar_to_cell(parameters), np.float64)
    except AssertionError:  # angles that no three vectors have
        cell = np.zeros((3, 3))
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < 1e-6:
        raise UnusableError("no cell", "its lengths and angles enclose no volume")
    return cell


def _number(text: str | None) -> float:
    from gemmi import cif

    return float(cif.as_number(text)) if text else float("nan")


def _column(block: Any, tag: str, count: int) -> list[str]:
    """Return the values of a tag of the sites as texts, empty where the block has none."""
    from gemmi import cif

    values = [cif.as_string(value) for value in block.find_values(tag)]
    if values and len(values) != count:
        raise UnusableError("not readable (atom sites in several loops)", f"{tag} has {len(values)} of {count} values")
    return values


def _read_places(block: Any) -> NDArray[np.float64]:
    """Return fractional coordinates `[n,3]`; NaN where the file says `?` or `.`."""
    columns = [[_number(x) for x in block.find_values(f"_atom_site_fract_{axis}")] for axis in "xyz"]
    if not columns[0]:
        raise UnusableError("no fractional coordinates", "_atom_site_fract_x is missing")
    if len({len(column) for column in columns}) != 1:
        raise UnusableError("not readable (atom sites in several loops)", "x, y and z differ in number")
    return np.array(columns, np.float64).T


def _check_sites(block: Any, labels: Sequence[str], places: NDArray[np.float64]) -> list[int]:
    """Return the sites that are atoms.

    Raises
    ------
    UnusableError
        if one is partly occupied, disordered, or has no position.
    """
    count = len(labels)
    dummy = _column(block, "_atom_site_calc_flag", count)
    kept = [k for k in range(count) if not dummy or dummy[k].lower() != "dum"]
    for k, value in enumerate(block.find_values("_atom_site_occupancy")):
        occupied = _number(value)
        if k in kept and np.isfinite(occupied) and abs(occupied - 1) > FULL:
            raise UnusableError("partly occupied sites", f"{labels[k]} is occupied by {occupied:g}")
    for k in kept:
        if not np.isfinite(places[k]).all():
            raise UnusableError("atoms without positions", labels[k])
    for k, value in enumerate(_column(block, "_atom_site_attached_hydrogens", count)):
        if value.isdigit() and int(value):
            raise UnusableError("atoms without positions", f"{value} hydrogens at {labels[k]}")
    groups = _column(block, "_atom_site_disorder_group", count)
    several = sorted({group for k, group in enumerate(groups) if k in kept and group not in (".", "?", "", "0")})
    if len(several) > 1:
        raise UnusableError("disordered sites", f"groups {', '.join(several)}")
    return kept


def _read_elements(block: Any, labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return atomic numbers, 0 for no element, by type symbols or else labels; and notes for the report."""
    symbols = _column(block, "_atom_site_type_symbol", len(labels))
    symbols = [label if not s or s in ".?" else s for s, label in zip(symbols or labels, labels, strict=True)]
    formula = set(re.findall(r"[A-Z][a-z]?", _text(block, "_chemical_formula_sum")))
    notes: list[str] = []
    numbers = []
    for symbol, label in zip(symbols, labels, strict=True):
        name = _find_symbol(symbol, formula)
        if name in ("D", "T"):
            notes.append(HEAVY_HYDROGEN)
            name = "H"
        if not name:
            raise UnusableError("a site that is no element", f"{label} is {symbol}")
        numbers.append(_atomic_numbers()[name])
    return numbers, notes


@cache
def _atomic_numbers() -> Mapping[str, int]:
    from ase.data import atomic_numbers

    return atomic_numbers


def _find_symbol(text: str, formula: set[str]) -> str:
    """Return the element that `Fe3+`, `Fe1`, `OW` or `CL1` begins with; the formula decides between two."""
    letters = re.match(r"[A-Za-z]{1,2}", text)
    if not letters:
        return ""
    known = _atomic_numbers()
    two, one = letters.group().capitalize(), letters.group()[0].upper()
    found = [name for name in dict.fromkeys((two, one)) if (name in known and name != "X") or name in ("D", "T")]
    if len(found) > 1 and letters.group() != two:  # CL1, cl1: letters of one case
        found = [name for name in found if name in formula] or found[::-1]
    return found[0] if found else ""


def _text(block: Any, tag: str) -> str:
    from gemmi import cif

    value = block.find_value(tag)
    return "" if value is None else cif.as_string(value)


def _require_hydrogen(block: Any, numbers: Sequence[int]) -> None:
    """Raise if the formula has hydrogen and no site is one."""
    formula = re.findall(r"[A-Z][a-z]?", _text(block, "_chemical_formula_sum"))
    if 1 not in numbers and {"H", "D"} & set(formula):
        raise UnusableError("atoms without positions", f"hydrogen of {_text(block, '_chemical_formula_sum')}")


class CifSink(TextSink):
    """CIF, one data block per structure. What is not periodic along three axes is skipped: CIF cannot say that."""

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures."""
        for k in self.keep_crystals(batch, "CIF"):
            self.text.write(format_cif(batch, k))


ROW = Format(
    name="cif",
    about="CIF, one data block per structure",
    endings=(".cif",),
    read=read_cif,
    sink=CifSink,
    lacks="other than three periodic axes; orientation of the cell; labels, charge, spin",
    compressed=True,
    single=format_cif,
    single_ending=".cif",
)
