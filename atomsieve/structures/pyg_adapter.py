"""Conversion between PyTorch Geometric `Data` objects and `StructureBatch`, for users with lists of such objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, require
from atomsieve.structures.adapters.conditions import find_condition
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import FIELDS, LABELS, to_numbers
from atomsieve.structures.labels import NAMES

NUMBERS = ("atomic_numbers", "z", "numbers")
CONDITIONS = ("charge", "spin")


def _require_pyg() -> Any:
    return require("torch_geometric.data", "pyg", "exchanging structures with PyTorch Geometric")


def from_pyg(data: Iterable[Any]) -> StructureBatch:
    """Build a batch from PyG `Data` objects.

    Read are `atomic_numbers` (or `z`, `numbers`) [n], `pos` [n,3], and where present `cell` [3,3], `pbc` [3], `id`,
    `energy` (eV), `forces` [n,3] (eV/Angstrom) and `stress` [3,3] (eV/Angstrom^3); total charge and multiplicity under
    the names that are certain (`charge`, `total_charge`; `spin`, `multiplicity`, `spin_multiplicity`), where an array
    of several values is one of atoms and is not taken.

    Raises
    ------
    DataError
        if an object lacks atomic numbers or positions, has a cell and no `pbc`, an array of the wrong size, or two
        names that differ in their value.
    """
    _require_pyg()
    rows = [_row(item, k) for k, item in enumerate(data)]
    if not rows:
        return StructureBatch.empty()
    counts = np.array([len(row["numbers"]) for row in rows], np.int64)
    out: dict[str, Any] = {"ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)}
    for name, field in FIELDS.items():
        if name == "ptr" or name.startswith("has_") or not (field.required or any(name in row for row in rows)):
            continue
        values = []
        for k, (row, count) in enumerate(zip(rows, counts.tolist(), strict=True)):
            shape = field.shape(1, count)
            fill = {"id": k, "cell": 0, "pbc": False}.get(name, field.missing)
            values.append(row[name].reshape(shape) if name in row else np.full(shape, fill))
        out[name] = np.concatenate(values).astype(field.dtype)
        if name in LABELS:
            out[f"has_{name}"] = np.array([name in row for row in rows])
    return StructureBatch(**out).validate()


def _row(item: Any, place: int) -> dict[str, NDArray[Any]]:
    found = {name: getattr(item, name, None) for name in ("cell", "pbc", "id", *LABELS)}
    found["numbers"] = next((v for key in NUMBERS if (v := getattr(item, key, None)) is not None), None)
    found["positions"] = getattr(item, "pos", None)
    row = {name: _as_array(value) for name, value in found.items() if value is not None}
    for name in ("numbers", "positions"):
        if name not in row:
            raise DataError(f"object {place} has no {' or '.join(NUMBERS) if name == 'numbers' else 'pos'}")
    if "pbc" not in row and "cell" in row and row["cell"].any():
        raise DataError(
            f"object {place} has a cell and no pbc that says whether it is periodic; set pbc = [[True, True, True]], "
            "or [[False, False, False]] for a molecule in a box"
        )
    row["numbers"] = to_numbers(row["numbers"].reshape(-1))
    row |= _conditions(item, place)
    for name, array in row.items():
        wanted = int(np.prod(FIELDS[name].shape(1, len(row["numbers"]))))
        if array.size != wanted:
            raise DataError(f"object {place}: {name} has shape {array.shape}, {wanted} numbers were expected")
    return row


def _as_array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _conditions(item: Any, place: int) -> dict[str, NDArray[Any]]:
    """Return total charge and multiplicity, each where it is stated."""
    given = {name: getattr(item, name, None) for label in CONDITIONS for name in NAMES[label]}
    stated = {name: _as_array(value) for name, value in given.items() if value is not None}
    found = {label: find_condition(label, {f"object {place}:": stated}) for label in CONDITIONS}
    return {label: np.array([value]) for label, value in found.items() if value == value}


def to_pyg(batch: StructureBatch) -> list[Any]:
    """Return one PyG `Data` per structure.

    It has `atomic_numbers` [n], `pos` [n,3], `cell` [1,3,3], `pbc` [1,3], `natoms`, `id` [1], and where the structure
    has them `charge`, `spin`, `energy` [1], `forces` [n,3], `stress` [1,3,3].
    """
    import torch

    data = _require_pyg()

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    out = []
    for s in range(len(batch)):
        one = batch.slice(s, s + 1)
        values: dict[str, Any] = {
            "atomic_numbers": tensor(one.numbers.astype(np.int64)),
            "pos": tensor(one.positions),
            "cell": tensor(one.cell),
            "pbc": tensor(one.pbc),
            "natoms": one.n_atoms,
            "id": tensor(one.id),
        }
        for name in ("charge", "spin", *LABELS):
            array, has = getattr(one, name), getattr(one, f"has_{name}", None)
            if array is not None and (has[0] if has is not None else not np.isnan(array[0])):
                values[name] = tensor(array)
        out.append(data.Data(**values))
    return out
