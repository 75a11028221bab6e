"""Candidates for a hull: the lowest structure of each reduced formula, kept by a training or taken from a file."""

from __future__ import annotations

import struct
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from atomsieve.errors import DataError
from atomsieve.runs.output_files import atomic_write
from atomsieve.stability.phases import FOLDER, LARGEST, Compositions, count_compositions
from atomsieve.structures import StructureBatch, StructureReader

READ = 4096
"""Structures read at once."""
_ARRAYS = {
    "ptr": np.int64,
    "numbers": np.uint8,
    "positions": np.float64,
    "cell": np.float64,
    "pbc": np.uint8,
    "id": np.int64,
    "energy": np.float64,
}


def hash_reduced(compositions: Compositions) -> NDArray[np.uint64]:
    """Return a key [n] of 64 bits for each reduced formula: equal for equal ones."""
    c, owner = compositions, np.repeat(np.arange(len(compositions)), np.diff(compositions.ptr))
    out = np.zeros(len(c), np.uint64)
    if len(c.count):
        starts = c.ptr[:-1][np.diff(c.ptr) > 0]
        divisor = np.ones(len(c), np.int64)
        divisor[np.diff(c.ptr) > 0] = np.gcd.reduceat(c.count, starts)
        with np.errstate(over="ignore"):
            z = (c.element.astype(np.uint64) << np.uint64(32)) + (c.count // divisor[owner]).astype(np.uint64)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # SplitMix64 of (element, count), summed
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            out[np.diff(c.ptr) > 0] = np.add.reduceat(z ^ (z >> np.uint64(31)), starts)
    return out


def find_lowest(keys: NDArray[np.uint64], energy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the place of the lowest energy of each key [n], sorted; NaN energies are left out."""
    order = np.lexsort((np.arange(len(keys)), energy, keys))
    order = order[np.isfinite(energy[order])]
    first = np.concatenate([[True], keys[order][1:] != keys[order][:-1]]) if len(order) else np.zeros(0, bool)
    return np.sort(order[first])


def read_candidates(reader: StructureReader, head: str, path: str | Path | None = None) -> StructureBatch:
    """Return the candidates for a hull in a file: of labelled structures of source `head` the lowest of each formula.

    Where nothing is labelled, all structures are candidates. Charged structures have no place on a hull.

    path : what messages call the file; None takes where the reader reads.

    Raises
    ------
    DataError
        if labels are of other sources alone: energies are compared within one level of theory.
    """
    names = [source.name for source in reader.sources]
    own = names.index(head) if head in names else None
    labelled = "energy" in reader.fields
    kept: StructureBatch | None = None
    for start in range(0, len(reader), READ):
        batch = reader.read(start, min(start + READ, len(reader)))
        good = batch.counts > 0
        if batch.charge is not None:
            good &= ~(np.nan_to_num(batch.charge) != 0)
        if labelled and batch.has_energy is not None:
            good &= batch.has_energy
            if own is not None and batch.head is not None:
                good &= batch.head == own
            elif own is None and names:
                good[:] = False
        part = strip_labels(batch.take(np.flatnonzero(good)))
        kept = part if kept is None else StructureBatch.concatenate([kept, part])
        if labelled:
            kept = keep_lowest(kept)
    if labelled and kept is not None and not len(kept):
        held = f"its labels are of {', '.join(names)}" if names else "it has no labelled structures"
        raise DataError(
            f"{path or reader.path} holds no labelled structure of source {head!r} ({held}); energies are compared "
            "within one level of theory: name a head that is called like its source, or give structures without labels"
        )
    if kept is None or not len(kept):
        raise DataError(f"{path or reader.path} holds no neutral structure")
    return kept


def strip_labels(batch: StructureBatch) -> StructureBatch:
    """Return a batch with the fields that candidates keep: geometry, id, and energy where it is known."""
    energy = np.full(len(batch), np.nan) if batch.energy is None else np.asarray(batch.energy, np.float64)
    return StructureBatch(batch.ptr, batch.numbers, batch.positions, batch.cell, batch.pbc, batch.id, energy=energy)


def keep_lowest(batch: StructureBatch) -> StructureBatch:
    """Return the structures of lowest energy per atom of each reduced formula, in order."""
    compositions = count_compositions(batch.ptr, batch.numbers)
    assert batch.energy is not None
    return batch.take(find_lowest(hash_reduced(compositions), batch.energy / np.maximum(batch.counts, 1)))


def candidates_path(folder: str | Path, head: str) -> Path:
    """Return where a training keeps the candidates of a head."""
    return Path(folder) / FOLDER / f"{quote(head, safe='')}.phases.safetensors"


def write_candidates(folder: str | Path, head: str, batch: StructureBatch) -> Path:
    """Put the candidates of a head into an ensemble folder."""
    path = candidates_path(folder, head)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(getattr(batch, name), kind) for name, kind in _ARRAYS.items()}
    atomic_write(path, bytes(save(arrays)))
    return path


def read_stored_candidates(folder: str | Path, head: str) -> StructureBatch | None:
    """Return the candidates that a training kept for a head, with their labels as energies; None where it kept none.

    Raises
    ------
    DataError
        if the file is damaged.
    """
    path = candidates_path(folder, head)
    if not path.is_file():
        return None
    remedy = "remove it, and give the structures with --from"
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any set of candidates; {remedy}")
    try:
        arrays = load(path.read_bytes())
        if {*arrays} != {*_ARRAYS} or any(arrays[name].dtype != np.dtype(kind) for name, kind in _ARRAYS.items()):
            raise ValueError("its arrays are not those of candidates")
        batch = StructureBatch(
            arrays["ptr"],
            arrays["numbers"],
            arrays["positions"],
            arrays["cell"],
            arrays["pbc"].astype(bool),
            arrays["id"],
            energy=arrays["energy"],
        )
        return batch.validate()
    except (SafetensorError, ValueError, KeyError, IndexError, struct.error, DataError) as error:
        raise DataError(f"{path} holds no candidates ({' '.join(str(error).split())}); {remedy}") from error
