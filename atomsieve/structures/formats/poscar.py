"""POSCAR and CONTCAR of VASP, plain or gzip."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.native import text_library
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import Format, TextSink
from atomsieve.structures.formats.records.geometry import UnusableError
from atomsieve.structures.formats.structure_text import format_poscar
from atomsieve.structures.item import BadItem, Item, ReadRequest, open_with_progress

log = logging.getLogger(__name__)

LARGEST_FILE = 1 << 30
GZIP = b"\x1f\x8b"
PERIODIC = np.ones(3, bool)
PERIODIC.setflags(write=False)


def read_poscar(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the one structure of a POSCAR or CONTCAR.

    One scale factor, negative for a volume, or three; names of species such as `Ti_sv` or `Ti_pv/hash`; fractional or
    Cartesian coordinates. Selective dynamics, velocities and what follows are not taken. Without a line of species
    (VASP 4) they are those that every line of coordinates ends with, or the words of the title if these are as many
    elements as there are counts; else the structure is a `BadItem`.
    """
    path = request.path
    try:
        # Most are small and plain: opening them for a stream would cost more than reading does.
        with path.open("rb", buffering=0) as plain:
            if os.fstat(plain.fileno()).st_size > LARGEST_FILE:
                raise UnusableError("too long for a POSCAR", f"more than {LARGEST_FILE:,} bytes")
            text = plain.readall()
        if text[:2] == GZIP:
            with open_with_progress(path) as (file, _):
                text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise UnusableError("too long for a POSCAR", f"more than {LARGEST_FILE:,} bytes")
        yield parse_poscar(text.decode(errors="replace"), str(path))
    except UnusableError as error:
        yield BadItem(error.reason, str(path), error.detail)
    except (OSError, EOFError) as error:
        yield BadItem("not readable (damaged)", str(path), str(error))
    except (ValueError, IndexError, OverflowError) as error:
        log.debug("%s: %s", path, error, exc_info=True)
        yield BadItem(f"not readable ({type(error).__name__})", str(path), str(error))
    request.tick(1.0)


def parse_poscar(text: str, where: str) -> Item:
    """Return the structure of the text of a POSCAR.

    Raises
    ------
    UnusableError
        if its species are not certain, or a line is not what VASP expects there.
    """
    lines = text.splitlines()
    if len(lines) < 8:
        raise UnusableError("not a POSCAR", f"it has {len(lines)} lines")
    scale = _numbers(lines, 1, None)
    cell = _vectors(lines, 2, 3)
    at = 5
    named = not lines[at].split()[:1] or not lines[at].split()[0].isdigit()
    species = lines[at].split() if named else []
    at += named
    counts = _counts(lines, at)
    at += 1
    if lines[at].lstrip()[:1] in ("S", "s"):
        at += 1
    mode = lines[at].lstrip()[:1]
    at += 1
    total = sum(counts)
    if total > len(lines) - at:
        raise UnusableError("fewer coordinates than atoms", f"{len(lines) - at} lines for {total} atoms")
    places = _vectors(lines, at, total)
    symbols = species or _guess_species(lines[0], [line.split() for line in lines[at : at + total]], counts)
    if len(symbols) != len(counts):
        raise UnusableError("species and counts differ in number", f"{len(symbols)} names, {len(counts)} counts")
    known = _known()
    each = [known.get(symbol, 0) or _read_species(symbol, lines[0]) for symbol in symbols]
    numbers = np.array([number for number, count in zip(each, counts, strict=True) for _ in range(count)], np.int64)
    scaled, factor = _apply_scale(scale, cell)
    positions = places * factor if mode in ("C", "c", "K", "k") else places @ scaled
    return Item(
        numbers=numbers,
        positions=positions,
        cell=scaled,
        pbc=PERIODIC,
        where=where,
        info={"title": lines[0].strip()} if lines[0].strip() else {},
    )


def _vectors(lines: Sequence[str], k: int, count: int) -> NDArray[np.float64]:
    """Return the three numbers at the beginning of each of `count` lines from line k on."""
    library = text_library()
    if library is not None:
        out = np.empty((count, 3))
        text = "\n".join(lines[k : k + count]).encode()
        sizes = (ctypes.c_int64(len(text)), ctypes.c_int64(count), ctypes.c_int64(3))
        if library.number_lines(text, *sizes, ctypes.c_void_p(out.ctypes.data)):
            return out
    return np.array([_numbers(lines, k + n, 3) for n in range(count)], np.float64).reshape(count, 3)


def _numbers(lines: Sequence[str], k: int, count: int | None) -> list[float]:
    """Return the numbers at the beginning of a line: `count`, or one or three."""
    words = lines[k].split() if k < len(lines) else []
    found: list[float] = []
    try:
        if count is not None and len(words) >= count:
            return [float(word) for word in words[:count]]
    except ValueError:  # 1.0D+00, or no number
        pass
    for word in words[: count or 3]:
        try:
            found.append(float(re.sub("[dD]", "e", word)))
        except ValueError:
            break
    if count is None and found:
        found = found if len(found) == 3 else found[:1]
    if len(found) != (count or len(found)) or not found:
        _refuse_line(lines, k)
    return found


def _refuse_line(lines: Sequence[str], k: int) -> None:
    shown = repr(lines[k].strip()[:60]) if k < len(lines) else "the file ends"
    raise UnusableError("a line that is no POSCAR", f"line {k + 1}: {shown}")


def _counts(lines: Sequence[str], k: int) -> list[int]:
    found = []
    for word in lines[k].split():
        if not word.isdigit():
            break  # a comment
        found.append(int(word))
    if not found:
        _refuse_line(lines, k)
    return found


def _apply_scale(scale: list[float], cell: NDArray[np.float64]) -> tuple[NDArray[np.float64], Any]:
    """Return the cell and the factor of Cartesian coordinates. A negative scale is minus the volume of the cell."""
    if len(scale) == 3:
        if min(scale) <= 0:
            raise UnusableError("a scale that VASP does not take", " ".join(f"{x:g}" for x in scale))
        return cell * np.array(scale), np.array(scale)
    factor = scale[0]
    if factor < 0:
        factor = float((-factor / abs(np.linalg.det(cell))) ** (1 / 3))
    if factor == 0 or not np.isfinite(factor):
        raise UnusableError("a scale that VASP does not take", f"{scale[0]:g}")
    return cell * factor, factor


def _guess_species(title: str, words: Sequence[Sequence[str]], counts: Sequence[int]) -> list[str]:
    """Return the species of a file without a line of them, where they are certain."""
    last = [row[-1] if len(row) > 3 else "" for row in words]
    if last and all(name in _known() for name in last):
        ends = np.cumsum(counts)
        groups = [set(last[end - count : end]) for end, count in zip(ends.tolist(), counts, strict=True)]
        if all(len(group) == 1 for group in groups):
            return [group.pop() for group in groups]
    named = title.split()
    if len(named) == len(counts) and all(name in _known() for name in named):
        return named
    raise UnusableError(
        "species are not named (VASP 4)", f"title {title.strip()[:60]!r}; add a line of symbols above the counts"
    )


def _read_species(word: str, title: str) -> int:
    """Return the atomic number of `Ti`, `Ti_sv`, `Ti_pv/hash` or `H1.25` (a pseudo-hydrogen is none)."""
    number = _known().get(word, 0) or _known().get(re.split(r"[_/]", word)[0], 0)
    if number < 1:
        raise UnusableError("a species that is no element", f"{word!r} under the title {title.strip()[:60]!r}")
    return number


@cache
def _known() -> Mapping[str, int]:
    from ase.data import atomic_numbers

    return atomic_numbers


class PoscarSink(TextSink):
    """A POSCAR, for one structure; what is not periodic along three axes is skipped: in VASP everything is."""

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write the structure."""
        for k in self.keep_crystals(batch, "POSCAR"):
            if self.text.tell():
                self.skip("a POSCAR holds one structure: --as poscar writes a folder of them")
                continue
            self.text.write(format_poscar(batch, k))


ROW = Format(
    name="poscar",
    about="VASP POSCAR, CONTCAR",
    endings=(".vasp", ".poscar"),
    read=read_poscar,
    sink=PoscarSink,
    lacks="other than three periodic axes; labels, charge, spin",
    beginnings=("POSCAR", "CONTCAR"),
    compressed=True,
    single=format_poscar,
    single_ending=".vasp",
)
