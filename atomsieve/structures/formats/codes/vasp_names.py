"""Elements from the names that VASP and its potentials give them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SHORT = {"r": "Zr", "X": "Xe"}
"""VASP abbreviates these two elements so in vasprun.xml."""


def numbers_of(names: Iterable[str]) -> NDArray[np.int64]:
    """Return the atomic number of each name, such as `Ti`, `Ti_sv`, `H1.25` or `Ti_sv/8a5e6f`.

    Raises
    ------
    ValueError
        for a name that begins with no element.
    """
    from ase.data import atomic_numbers

    out = []
    for name in names:
        match = re.match(r"[A-Z][a-z]?(?![a-z])", SHORT.get(name, name))
        if match is None or match[0] not in atomic_numbers:
            raise ValueError(f"{name!r} is no element")
        out.append(atomic_numbers[match[0]])
    return np.array(out, np.int64)
