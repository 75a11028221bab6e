"""Reference sets: the phases of one head from which formation energies and convex hulls are computed, as a file.

    gfm/references/<head>.safetensors        phases with the energy of every member, of the weights in the folder
    gfm/references/<head>.phases.safetensors structures that a training kept as candidates for a hull

All energies of a set are of one ensemble and one head: the zeros of energy of different methods and of different heads
are not comparable. A set names the weights that computed it; it is no part of the ensemble's identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.runs.output_files import atomic_write
from atomsieve.structures.batch import ragged_index

FOLDER, FORMAT = "references", "atomsieve-references-1"
LARGEST = 1 << 30
"""Bytes of a file of references at most."""
ORIGINS = ("data", "prototype", "file")
_ARRAYS: dict[str, tuple[str, int]] = {
    "energy": ("<f8", 1),
    "deviation": ("<f4", 2),
    "ptr": ("<i8", 1),
    "element": ("|u1", 1),
    "count": ("<i4", 1),
    "in_domain": ("|u1", 1),
}


@dataclass(frozen=True)
class Compositions:
    """Which elements n structures hold, and how many atoms of each.

    ptr : [n+1] where the elements of each structure begin. element, count : [P] atomic numbers, sorted within a
    structure, and atoms of them.
    """

    ptr: NDArray[np.int64]
    element: NDArray[np.uint8]
    count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @cached_property
    def masks(self) -> NDArray[np.uint64]:
        """Which elements are in each structure, one bit each, [n,2]."""
        found = np.zeros((len(self), 2), np.uint64)
        owner = np.repeat(np.arange(len(self)), np.diff(self.ptr))
        bits = np.uint64(1) << (self.element % 64).astype(np.uint64)
        for word in (0, 1):
            here = self.element // 64 == word
            starts = np.flatnonzero(np.diff(owner[here], prepend=-1))
            if len(starts):
                found[owner[here][starts], word] = np.bitwise_or.reduceat(bits[here], starts)
        return found

    def take(self, index: NDArray[np.int64]) -> Compositions:
        """Return the compositions of the structures `index`, in that order."""
        counts = np.diff(self.ptr)[index]
        here = ragged_index(self.ptr[:-1][index], counts)
        ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Compositions(ptr, self.element[here], self.count[here])

    def content(self, chosen: NDArray[np.int64], elements: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the atoms [c,d] of the sorted `elements [d]` in the structures `chosen [c]`, which hold no others."""
        counts = self.ptr[chosen + 1] - self.ptr[chosen]
        if (counts == len(elements)).all():  # each holds all of them, in this order
            return self.count[self.ptr[chosen][:, None] + np.arange(len(elements))].astype(np.float64)
        here = ragged_index(self.ptr[chosen], counts)
        found = np.zeros((len(chosen), len(elements)))
        found[np.repeat(np.arange(len(chosen)), counts), np.searchsorted(elements, self.element[here])] = self.count[
            here
        ]
        return found


def count_compositions(ptr: NDArray[np.int64], numbers: NDArray[np.uint8]) -> Compositions:
    """Return the compositions of structures given as `ptr [n+1]` and atomic numbers [N]."""
    width, n = 128, len(ptr) - 1
    step, parts = 65_536, []
    for first in range(0, max(n, 1), step):
        own = ptr[first : first + step + 1]
        owner = np.repeat(np.arange(len(own) - 1, dtype=np.int64), np.diff(own))
        table = np.bincount(owner * width + numbers[own[0] : own[-1]], minlength=(len(own) - 1) * width)
        found = np.flatnonzero(table)
        parts.append((found // width + first, found % width, table[found]))
    structure, element, count = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    starts = np.searchsorted(structure, np.arange(n + 1)).astype(np.int64)
    return Compositions(starts, element.astype(np.uint8), count.astype(np.int64))


@dataclass(frozen=True)
class ReferenceSet:
    """P phases of one head, computed by an ensemble of K members.

    Attributes
    ----------
    head : its name. level : its level of theory, as the ensemble states it. weights : SHA-256 of the weights.
    precision : in which the phases were computed. relaxed : whether the phases of the data were relaxed by the head.
    compositions : of the phases. energy : [P] eV/atom, mean of the members.
    deviation : [P,K] eV/atom, of each member minus the mean. in_domain : [P] bool.
    names : [P] for people. origins : [P] one of `ORIGINS`: labelled data, a standard prototype of an element, a file.
    correction : name of the energy corrections that are added to phases and rows alike, "none" by default.
    """

    head: str
    level: str
    weights: str
    precision: str
    relaxed: bool
    compositions: Compositions
    energy: NDArray[np.float64]
    deviation: NDArray[np.float32]
    in_domain: NDArray[np.bool_]
    names: tuple[str, ...] = field(repr=False)
    origins: tuple[str, ...] = field(repr=False)
    correction: str = "none"

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def members(self) -> int:
        """Number K of members."""
        return self.deviation.shape[1]

    @cached_property
    def elements(self) -> dict[int, int]:
        """The lowest phase of each element, by atomic number."""
        c = self.compositions
        single = np.flatnonzero(np.diff(c.ptr) == 1)
        order = single[np.argsort(self.energy[single], kind="stable")[::-1]]
        return {int(c.element[c.ptr[k]]): int(k) for k in order}

    @property
    def has_compounds(self) -> bool:
        """Whether there are phases of more than one element: then the hull is more than the elements."""
        return bool((np.diff(self.compositions.ptr) > 1).any())

    @cached_property
    def content(self) -> bytes:
        """The bytes of its file."""
        c = self.compositions
        arrays = {
            "energy": self.energy,
            "deviation": self.deviation,
            "ptr": c.ptr,
            "element": c.element,
            "count": c.count,
            "in_domain": self.in_domain,
        }
        header = {
            "format": FORMAT,
            "head": self.head,
            "level": self.level,
            "weights": self.weights,
            "precision": self.precision,
            "relaxed": self.relaxed,
            "correction": self.correction,
            "names": self.names,
            "origins": [ORIGINS.index(name) for name in self.origins],
        }
        plain = {n: np.ascontiguousarray(a, _ARRAYS[n][0]) for n, a in arrays.items()}
        return bytes(save(plain, {"references": json.dumps(header, sort_keys=True)}))

    @property
    def digest(self) -> str:
        """SHA-256 of its file."""
        return hashlib.sha256(self.content).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what a run records about it."""
        return {
            "digest": self.digest,
            "phases": len(self),
            "elements": len(self.elements),
            "correction": self.correction,
            "level_of_theory": self.level,
        }


def references_path(folder: str | Path, head: str) -> Path:
    """Return where the reference set of a head lies: in an ensemble or results folder."""
    return Path(folder) / FOLDER / f"{quote(head, safe='')}.safetensors"


def write_references(folder: str | Path, found: ReferenceSet) -> Path:
    """Write a reference set into an ensemble or results folder, whole or not at all."""
    path = references_path(folder, found.head)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, found.content)
    return path


def read_references(folder: str | Path, head: str) -> ReferenceSet | None:
    """Read the reference set of a head; None where the folder holds none. Nothing in the file is trusted.

    Raises
    ------
    DataError
        in one line, if it is damaged or of another head.
    """
    path = references_path(folder, head)
    if not path.is_file():
        return None
    remedy = "make it anew with: atomsieve references make"
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any reference set; {remedy}")
    try:
        with safe_open(str(path), "numpy") as file:
            header = json.loads((file.metadata() or {}).get("references", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        found = _check(header, arrays)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise DataError(f"{path} is no reference set ({' '.join(str(error).split())}); {remedy}") from error
    if found.head != head:
        raise DataError(f"{path} is of head {found.head!r}, not {head!r}; {remedy}")
    return found


def _check(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ReferenceSet:
    """Return the set of a file; ValueError names what is wrong."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    if odd := sorted({*arrays} ^ {*_ARRAYS}):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in _ARRAYS else 'unknown'}")
    for name, (kind, axes) in _ARRAYS.items():
        if arrays[name].dtype != np.dtype(kind) or arrays[name].ndim != axes:
            raise ValueError(f"{name} is {arrays[name].dtype} of {arrays[name].ndim} axes")
    ptr, n = arrays["ptr"], len(arrays["energy"])
    if len(ptr) != n + 1 or ptr[0] != 0 or (np.diff(ptr) < 1).any() or ptr[-1] != len(arrays["element"]):
        raise ValueError("ptr does not fit")
    if len(arrays["element"]) != len(arrays["count"]) or len(arrays["deviation"]) != n or len(arrays["in_domain"]) != n:
        raise ValueError("arrays have different lengths")
    element, inside = arrays["element"], np.ones(len(arrays["element"]), bool)
    inside[ptr[:-1]] = False
    rising = np.diff(element.astype(int), prepend=0) > 0
    if n and (element.min() < 1 or element.max() > 127 or not rising[inside].all() or arrays["count"].min() < 1):
        raise ValueError("elements or counts are out of range")
    if not np.isfinite(arrays["energy"]).all() or not np.isfinite(arrays["deviation"]).all():
        raise ValueError("energies are not finite")
    names, origins = tuple(map(str, header["names"])), tuple(ORIGINS[int(k)] for k in header["origins"])
    if len(names) != n or len(origins) != n:
        raise ValueError("names and phases differ in number")
    return ReferenceSet(
        head=str(header["head"]),
        level=str(header["level"]),
        weights=str(header["weights"]),
        precision=str(header["precision"]),
        relaxed=bool(header["relaxed"]),
        compositions=Compositions(ptr, element, arrays["count"].astype(np.int64)),
        energy=arrays["energy"],
        deviation=arrays["deviation"],
        in_domain=arrays["in_domain"].astype(bool),
        names=names,
        origins=origins,
        correction=str(header["correction"]),
    )


def require_weights(found: ReferenceSet, weights: str, where: str) -> None:
    """Refuse a reference set that other weights computed."""
    if found.weights != weights:
        raise AtomSieveError(
            f"{where}: the reference set of head {found.head!r} is of another ensemble (weights {found.weights[:12]}, "
            f"here {weights[:12]}), and energies of two ensembles make no hull; make it anew with: "
            f"atomsieve references make {where} --head {found.head}"
        )


def name_elements(numbers: list[int]) -> str:
    """Return atomic numbers as symbols, for people."""
    return ", ".join(chemical_symbols[z] if z < len(chemical_symbols) else f"[{z}]" for z in numbers)
