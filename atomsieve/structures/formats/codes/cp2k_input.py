"""The cell in inputs and restart files of CP2K."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.units import ANGSTROM_PER_BOHR

LARGEST_INPUT = 64 << 20


@dataclass(frozen=True)
class Cell:
    """Vectors `[3,3]` in Angstrom and periodicity `[3]`; `stated`: by a file or the user."""

    vectors: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    stated: bool


def read_cell(path: Path) -> Cell | None:
    """Return the cell of the section &CELL, None if there is none that can be read; periodic along XYZ by default."""
    with path.open(encoding="latin-1") as file:
        text = file.read(LARGEST_INPUT)
    match = re.search(r"^\s*&CELL\s*$(.*?)^\s*&END", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    if match is None:
        return None
    rows: dict[str, list[str]] = {}
    for line in match[1].splitlines():
        words = re.split(r"[!#]", line)[0].split()
        if words:
            rows[words[0].upper()] = words[1:]
    word = "".join(rows.get("PERIODIC", ["XYZ"])).upper()
    pbc = np.array([axis in word and word != "NONE" for axis in "XYZ"])
    try:
        return Cell(_vectors(rows), pbc, stated=True)
    except (KeyError, ValueError):  # a variable, or a cell in another file
        return None


def _vectors(rows: dict[str, list[str]]) -> NDArray[np.float64]:
    if "ABC" in rows:
        from ase.geometry import cellpar_to_cell

        angles = _numbers(rows["ALPHA_BETA_GAMMA"]) if "ALPHA_BETA_GAMMA" in rows else np.full(3, 90.0)
        lengths = _numbers(rows["ABC"]) * _scale(rows["ABC"])
        return np.asarray(cellpar_to_cell([*lengths, *angles], a_direction=(1, 0, 0)), np.float64)
    return np.stack([_numbers(rows[axis]) * _scale(rows[axis]) for axis in "ABC"])


def _scale(words: list[str]) -> float:
    unit = next((word.strip("[]").lower() for word in words if word.startswith("[")), "angstrom")
    if unit not in ("angstrom", "bohr"):
        raise ValueError(unit)
    return ANGSTROM_PER_BOHR if unit == "bohr" else 1.0


def _numbers(words: list[str]) -> NDArray[np.float64]:
    numbers = np.array([word for word in words if not word.startswith("[")][:3], np.float64)
    if numbers.shape != (3,):
        raise ValueError(" ".join(words))
    return numbers
