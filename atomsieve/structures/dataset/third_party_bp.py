"""Readers for BP directories written by others: in our variable names, or in HydraGNN's dataset schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, unknown
from atomsieve.runs.hashing import hash_file
from atomsieve.structures.dataset.bp5 import Bp5Reader
from atomsieve.structures.dataset.probe import probe_directory
from atomsieve.structures.dataset.reader import FileReader
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.source import SourceInfo

VIRTUAL_STEP = 20_000
"""Rows that are treated as one step where a file has one huge step."""
LABELS = ("trainset", "valset", "testset")
UNSTATED = "not stated"
LARGEST_NUMBER = 118


class _ThirdPartyReader(FileReader):
    """A BP directory without a manifest: it was probed, and its content is checked when it is read."""

    index: dict[str, Any]
    options: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.index, *self.options)

    def _open_part(self, part: int) -> Bp5Reader:
        return Bp5Reader(self.path)

    def identity(self) -> str:
        """Return the sha256 over the names and sizes of all files and the bytes of the metadata files."""
        digest = hashlib.sha256()
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(self.path)} {file.stat().st_size}\n".encode())
            if file.name.startswith(("md.", "mmd.")):
                digest.update(hash_file(file).encode())
        return digest.hexdigest()

    def _numbers(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return atomic numbers as uint8, and refuse other values (files may keep them as floats)."""
        rounded = np.rint(values)
        if len(values) and not ((rounded == values).all() and rounded.min() >= 0 and rounded.max() <= LARGEST_NUMBER):
            raise DataError(f"{self.path} holds atomic numbers that are not whole numbers from 0 to {LARGEST_NUMBER}")
        return rounded.astype(np.uint8)


# -- our variable names --------------------------------------------------------------------------------------------


class BareReader(_ThirdPartyReader):
    """A BP5 directory with steps of `natoms [S]`, `numbers [N]`, `positions [N,3]` and any other field of ours."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.index, self.options = index, ()
        variables = index["variables"]
        held = [name for name in FIELDS if name in variables and variables[name]["type"]]
        for name in ("numbers", "positions"):
            if name not in held:
                raise DataError(f"{path} has no variable {name!r}; it has {', '.join(sorted(variables)[:12])}")
        n_steps = len(variables["natoms"]["shapes"])
        for name in held:
            if len(variables[name]["shapes"]) != n_steps:
                raise DataError(
                    f"{path}: {name!r} has {len(variables[name]['shapes'])} steps, natoms has {n_steps}; every step "
                    "must have every variable"
                )
        structures = [shape[0] if len(shape) == 1 else -1 for shape in variables["natoms"]["shapes"]]
        atoms = [shape[0] if shape else -1 for shape in variables["numbers"]["shapes"]]
        for name in held:
            rows = atoms if FIELDS[name].axis == "atom" else structures
            columns = int(np.prod(FIELDS[name].trailing))
            for step, shape in enumerate(variables[name]["shapes"]):
                if not shape or shape[0] != rows[step] or int(np.prod(shape[1:])) != columns:
                    raise DataError(
                        f"{path}: {name!r} has shape {shape} in step {step}; {FIELDS[name].symbol} was expected with "
                        f"{structures[step]} structures and {atoms[step]} atoms"
                    )
        super().__init__(
            path,
            _read_sources(index),
            held,
            np.array(structures, np.int64),
            np.array(atoms, np.int64),
            np.dtype(np.float32 if variables["positions"]["type"] == "float32" else np.float64),
            {},
        )
        for single in np.flatnonzero(self.step_atoms == 1):  # one row may be padding: arrays cannot be empty on disk
            self.step_atoms[single] = int(self._read_counts(int(single)).sum())
        self.n_atoms = int(self.step_atoms.sum())

    def _read_counts(self, step: int) -> NDArray[np.int64]:
        return self._part(0).read("natoms", step, 0, int(self.step_structures[step])).astype(np.int64)

    def _read_rows(self, step: int, name: str, structures: tuple[int, int], atoms: tuple[int, int]) -> NDArray[Any]:
        field = FIELDS[name]
        first, last = atoms if field.axis == "atom" else structures
        if name not in self.index["variables"]:
            if name == "id":
                return np.arange(first, last) + self._first[step]
            return np.zeros((last - first, *field.trailing), field.dtype)
        rows = self._part(0).read(name, step, first, last - first)
        if field.dtype == bool:
            return rows != 0
        return self._numbers(rows) if name == "numbers" else rows


def _read_sources(index: dict[str, Any]) -> list[SourceInfo]:
    """Return the sources that a part of ours carries in an attribute; none where there is no such attribute."""
    text = index["attributes"].get("atomsieve/sources", "[]")
    try:
        return [SourceInfo(str(name), str(level)) for name, level in json.loads(text)]
    except (TypeError, ValueError):
        return []


# -- HydraGNN ------------------------------------------------------------------------------------------------------

_KEYS = {
    "charge": ("charge", "graph_attr"),
    "spin": ("spin", "graph_attr"),
    "energy": ("energy",),
    "forces": ("forces",),
    "stress": ("stress",),
}
"""Our field -> HydraGNN's keys, the first that there is: by name, or both conditions in `graph_attr`, as before."""
_USED = (
    *("pos", "atomic_numbers", "x", "cell", "pbc", "natoms", "chemical_composition", "graph_attr"),
    *("edge_index", "edge_attr", "edge_shifts", *_KEYS),
)
"""Keys that are read, or repeat what is read, or follow from it."""


class _Rows(NamedTuple):
    """A virtual step: samples `start:stop` of a label, whose atoms are `first_atom:last_atom` of it."""

    label: str
    start: int
    stop: int
    first_atom: int
    last_atom: int


class HydraReader(_ThirdPartyReader):
    """HydraGNN's dataset schema: one step, `<label>/<key>` with all samples joined along the axis that varies.

    Energies there have a linear regression over the composition taken off, with coefficients in the attribute
    `energy_linear_regression_coeff` (one per atomic number from 1); they are added back if `restore_energies` is set.
    """

    def __init__(self, path: Path, index: dict[str, Any], label: str, restore_energies: bool) -> None:
        self.index, self.options = index, (label, restore_energies)
        there = [name for name in LABELS if f"{name}/pos/variable_count" in index["variables"]]
        if label != "all" and label not in there:
            raise unknown("label", label, [*there, "all"])
        self._labels = there if label == "all" else [label]
        name = str(index["attributes"].get("dataset_name", path.name.split(".")[0]))
        coefficients = np.asarray(index["attributes"].get("energy_linear_regression_coeff", []), np.float64).reshape(-1)
        self._coefficients = coefficients if restore_energies and np.any(coefficients) else None
        notes = {"schema": "HydraGNN", "labels": ", ".join(self._labels)}
        if len(coefficients):
            notes["energy_linear_regression_coeff"] = json.dumps(coefficients.tolist())
            notes["energies"] = "linear regression added back" if self._coefficients is not None else "as stored"
        self._plan = self._virtual_steps(path)
        held = ["id", "head"]
        for field, keys in _KEYS.items():
            if any(f"{label}/{key}" in index["variables"] for label in self._labels for key in keys):
                held += [field] if field in ("charge", "spin") else [field, f"has_{field}"]
        left = {key.split("/")[1] for key in index["variables"] if key.count("/") == 1} - {*_USED}
        if left:
            notes["keys not taken"] = ", ".join(sorted(left))
        super().__init__(
            path,
            [SourceInfo(name, UNSTATED)],
            held,
            np.array([row.stop - row.start for row in self._plan], np.int64),
            np.array([row.last_atom - row.first_atom for row in self._plan], np.int64),
            np.dtype(index["variables"][f"{self._labels[0]}/pos"]["type"]),
            notes,
        )

    def _virtual_steps(self, path: Path) -> list[_Rows]:
        """Cut the samples of each label into steps and find where the atoms of each begin."""
        reader, plan = Bp5Reader(path), []
        for label in self._labels:
            total = self._shape(f"{label}/pos/variable_count", path)[0]
            cuts = [*range(0, total, VIRTUAL_STEP), total]
            atoms = [int(reader.read(f"{label}/pos/variable_offset", 0, cut, 1)[0]) for cut in cuts[:-1]]
            atoms.append(self._shape(f"{label}/pos", path)[0])
            plan += [_Rows(label, *row) for row in zip(cuts, cuts[1:], atoms, atoms[1:], strict=False)]
        reader.close()
        return plan

    def _shape(self, name: str, path: Path | None = None) -> list[int]:
        found = self.index["variables"].get(name)
        if found is None or not found["shapes"] or not found["shapes"][0]:
            raise DataError(f"{path or self.path} has no variable {name!r}, which HydraGNN's schema asks for")
        shape: list[int] = found["shapes"][0]
        return shape

    def _read_counts(self, step: int) -> NDArray[np.int64]:
        label, start, stop, first_atom, _ = self._plan[step]
        part = self._part(0)
        counts = part.read(f"{label}/pos/variable_count", 0, start, stop - start).astype(np.int64)
        offsets = part.read(f"{label}/pos/variable_offset", 0, start, stop - start).astype(np.int64)
        if not np.array_equal(offsets, first_atom + np.cumsum(counts) - counts):
            raise DataError(f"{self.path}: the samples of {label} do not lie one after another; this is not supported")
        return counts

    def _per_sample(self, step: int, key: str, rows: tuple[int, int], size: int) -> NDArray[Any]:
        """Return [rows,size] of a key with `size` numbers for every sample."""
        label, start = self._plan[step][:2]
        name = f"{label}/{key}"
        shape, total = self._shape(name), self._shape(f"{label}/pos/variable_count")[0]
        if int(np.prod(shape)) != total * size or shape[0] % total:
            raise DataError(f"{self.path}: {name!r} has shape {shape}; {size} number(s) for each of {total} expected")
        each = shape[0] // total
        first, last = start + rows[0], start + rows[1]
        return self._part(0).read(name, 0, first * each, (last - first) * each).reshape(last - first, size)

    def _per_atom(self, step: int, key: str, atoms: tuple[int, int], first_only: bool = False) -> NDArray[Any]:
        """Return [atoms,k] of a key with one row per atom."""
        plan = self._plan[step]
        name = f"{plan.label}/{key}"
        if self._shape(name)[0] != self._shape(f"{plan.label}/pos")[0]:
            raise DataError(f"{self.path}: {name!r} has shape {self._shape(name)}, which is not one row per atom")
        rows = self._part(0).read(name, 0, plan.first_atom + atoms[0], atoms[1] - atoms[0])
        rows = rows.reshape(len(rows), int(np.prod(rows.shape[1:])))
        return rows[:, 0] if first_only else rows

    def _has(self, step: int, key: str) -> bool:
        return f"{self._plan[step].label}/{key}" in self.index["variables"]

    def _read_rows(self, step: int, name: str, structures: tuple[int, int], atoms: tuple[int, int]) -> NDArray[Any]:
        rows = structures[1] - structures[0]
        match name:
            case "numbers":
                key = "atomic_numbers" if self._has(step, "atomic_numbers") else "x"
                return self._numbers(self._per_atom(step, key, atoms, first_only=True))
            case "positions" | "forces":
                key = "pos" if name == "positions" else "forces"
                if key == "forces" and not self._has(step, key):
                    return np.full((atoms[1] - atoms[0], 3), np.nan)
                return self._per_atom(step, key, atoms)
            case "cell" | "pbc":
                size = 9 if name == "cell" else 3
                if not self._has(step, name):
                    return np.zeros((rows, size))
                found = self._per_sample(step, name, structures, size)
                return self._drop_placeholders(step, structures, found) if name == "cell" else found != 0
            case "id":
                return np.arange(structures[0], structures[1]) + self._first[step]
            case "charge" | "spin":
                return self._condition(step, name, structures)
            case "has_energy" | "has_forces" | "has_stress":
                return np.full(rows, self._has(step, name.removeprefix("has_")))
            case "energy":
                return self._energies(step, structures, atoms)
            case "stress":
                return (
                    self._per_sample(step, name, structures, 9) if self._has(step, name) else np.full((rows, 9), np.nan)
                )
            case "head":
                return np.zeros(rows, np.int32)
        return np.ones(rows, bool)

    def _condition(self, step: int, name: str, structures: tuple[int, int]) -> NDArray[Any]:
        """Return total charges or multiplicities: by name, or from `graph_attr`, which holds both."""
        if self._has(step, name):
            return self._per_sample(step, name, structures, 1)[:, 0]
        if self._has(step, "graph_attr"):
            return self._per_sample(step, "graph_attr", structures, 2)[:, 0 if name == "charge" else 1]
        return np.full(structures[1] - structures[0], np.nan)

    def _drop_placeholders(self, step: int, structures: tuple[int, int], cells: NDArray[Any]) -> NDArray[Any]:
        """Return cells with zeros for those of molecules, which are unit matrices in HydraGNN's files."""
        aperiodic = np.ones(len(cells), bool)
        if self._has(step, "pbc"):
            aperiodic = ~(self._per_sample(step, "pbc", structures, 3) != 0).any(axis=1)
        unit = (cells.reshape(-1, 9) == np.eye(3).reshape(9)).all(axis=1)
        return np.where((aperiodic & unit)[:, None], 0, cells.reshape(-1, 9)).reshape(cells.shape)

    def _energies(self, step: int, structures: tuple[int, int], atoms: tuple[int, int]) -> NDArray[np.float64]:
        if not self._has(step, "energy"):
            return np.full(structures[1] - structures[0], np.nan)
        energies = self._per_sample(step, "energy", structures, 1)[:, 0].astype(np.float64)
        if self._coefficients is None:
            return energies
        numbers = self._read_rows(step, "numbers", structures, atoms).astype(np.int64)
        if len(numbers) and (numbers.min() < 1 or numbers.max() > len(self._coefficients)):
            raise DataError(f"{self.path}: some elements have no regression coefficient; open it with stored energies")
        owner = np.repeat(np.arange(len(energies)), self._step_counts(step)[slice(*structures)])
        return energies + np.bincount(owner, self._coefficients[numbers - 1], minlength=len(energies))


def open_third_party(path: Path, *, label: str, restore_energies: bool, timeout: float) -> FileReader:
    """Probe a BP directory that is not ours and open it with the reader that fits."""
    index = probe_directory(path, timeout)
    variables = index["variables"]
    if "natoms" in variables:
        return BareReader(path, index)
    if any(f"{name}/pos/variable_count" in variables for name in LABELS):
        return HydraReader(path, index, label, restore_energies)
    shown = ", ".join(sorted(variables)[:12]) or "none"
    raise DataError(
        f"{path} holds no structures that are understood: neither 'natoms', 'numbers', 'positions' nor HydraGNN's "
        f"'trainset/pos'; its variables: {shown}"
    )
