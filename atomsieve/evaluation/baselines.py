"""Predictors without a network, whose errors stand beside those of an ensemble.

Element references and zero forces come with the labels (`atomsieve.evaluation.headline`). Here is the
nearest-composition predictor: the mean energy, less the head's element references, of the training structures whose
composition is closest. An ensemble that does no better has learnt nothing about geometry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from atomsieve.errors import DataError
from atomsieve.runs.output_files import atomic_write

COMPOSITIONS = "compositions.safetensors"
"""File of a gfm/ folder with the training compositions of every head. It serves evaluation alone."""
MOST_COMPOSITIONS = 4000
"""Compositions of a head that are kept; of more, those with the smallest hashes, which is as good as drawn."""
WIDTH = 119
_CHUNK = 1000
_LARGEST = 64 << 20
_SAME = 1e-6
_WEIGHTS = np.random.default_rng(7).integers(1 << 62, size=WIDTH, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def count_elements(numbers: NDArray[np.uint8], structure: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return atoms of each element [n,119]. numbers, structure : [N] of the atoms."""
    flat = structure * WIDTH + numbers
    return np.bincount(flat, minlength=n * WIDTH).reshape(n, WIDTH)


def hash_compositions(counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a number [S] for each reduced formula, from atoms of each element [S,119]."""
    divisor = np.maximum(np.gcd.reduce(counts, axis=1), 1)
    return np.asarray(((counts // divisor[:, None]).astype(np.uint64) * _WEIGHTS).sum(1, dtype=np.uint64))


@dataclass(frozen=True)
class HeadCompositions:
    """T compositions of a head's training structures.

    Attributes
    ----------
    share : [T,119] part of the atoms that are of each element.
    energy : [T] eV/atom, mean over the structures of the composition, less the head's element references.
    """

    share: NDArray[np.float32]
    energy: NDArray[np.float32]

    def predict(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the energy [S] eV/atom, less references, of structures with element counts [S,119].

        Compositions are as far apart as the sum of the differences of their shares; of several that are as close, the
        mean is taken.
        """
        from scipy.spatial.distance import cdist

        hashes, first, inverse = np.unique(hash_compositions(counts), return_index=True, return_inverse=True)
        wanted = counts[first] / np.maximum(counts[first].sum(1, keepdims=True), 1)
        used = np.flatnonzero((self.share > 0).any(0) | (wanted > 0).any(0))
        own, energy = self.share[:, used].astype(np.float64), self.energy.astype(np.float64)
        out = np.empty(len(hashes))
        for start in range(0, len(hashes), _CHUNK):
            distance = cdist(wanted[start : start + _CHUNK][:, used], own, "cityblock")
            near = distance <= distance.min(1, keepdims=True) + _SAME
            out[start : start + _CHUNK] = near @ energy / near.sum(1)
        return out[inverse.reshape(-1)]


def fit_compositions(counts: NDArray[np.int64], energy: NDArray[np.float64]) -> HeadCompositions | None:
    """Return the compositions of training structures; None without any energy.

    counts : [S,119] atoms of each element. energy : [S] eV, less references; NaN where there is none.
    """
    known = np.isfinite(energy)
    counts, energy = np.asarray(counts[known], np.int64), energy[known]
    if not len(counts):
        return None
    _, first, inverse = np.unique(hash_compositions(counts), return_index=True, return_inverse=True)
    inverse, atoms = inverse.reshape(-1), counts.sum(1)
    mean = np.bincount(inverse, energy / atoms) / np.bincount(inverse)
    kept = first[:MOST_COMPOSITIONS]
    share = counts[kept] / atoms[kept, None]
    return HeadCompositions(share.astype(np.float32), mean[:MOST_COMPOSITIONS].astype(np.float32))


def write_compositions(folder: str | Path, found: Mapping[str, HeadCompositions], heads: Sequence[str]) -> None:
    """Write the compositions of the heads into a gfm/ folder; heads without any are left out."""
    arrays: dict[str, NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.int32]] = {}
    for k, name in enumerate(heads):
        if name in found:
            row, element = np.nonzero(found[name].share)
            arrays[f"{k}/row"], arrays[f"{k}/element"] = row.astype(np.int32), element.astype(np.uint8)
            arrays[f"{k}/share"], arrays[f"{k}/energy"] = found[name].share[row, element], found[name].energy
    atomic_write(Path(folder) / COMPOSITIONS, bytes(save(arrays, {"heads": json.dumps(list(heads))})))


def read_compositions(folder: str | Path) -> dict[str, HeadCompositions]:
    """Read the compositions of the heads of a gfm/ folder; nothing of a folder that has none.

    Raises
    ------
    DataError
        if the file is damaged.
    """
    path = Path(folder) / COMPOSITIONS
    if not path.is_file():
        return {}
    remedy = f"remove {path.name}, then evaluation goes without its nearest-composition predictor"
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any training's compositions; {remedy}")
    out = {}
    try:
        with safe_open(str(path), framework="numpy") as file:
            names, keys = json.loads((file.metadata() or {})["heads"]), set(file.keys())
            for k, name in enumerate(names):
                if f"{k}/energy" in keys:
                    row, element, share, energy = (
                        file.get_tensor(f"{k}/{part}") for part in ("row", "element", "share", "energy")
                    )
                    table = np.zeros((len(energy), WIDTH), np.float32)
                    table[row, element] = share
                    if not (np.isfinite(table).all() and np.isfinite(energy).all() and len(energy)):
                        raise ValueError("values that are not finite")
                    out[str(name)] = HeadCompositions(table, energy)
    except (SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); {remedy}") from error
    return out
