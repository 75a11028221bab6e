"""Writes systems of DeePMD-kit: a folder of npy files for each composition, or for each number of atoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.runs.output_files import atomic_folder
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import StructureSink, WriteOptions

HELD_ATOMS = 2_000_000
"""Atoms held in memory before all systems get a new set."""
SET_FRAMES = 20_000


@dataclass
class _System:
    """A system that is being written: its folder, and the frames that wait for the next set."""

    folder: Path
    numbers: NDArray[np.uint8]
    frames: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)
    sets: int = 0


class DeepmdSink(StructureSink):
    """A folder with one system for each order of elements, periodicity and choice of labels, or, under a name that ends
    in `.deepmd-mixed`, for each number of atoms, periodicity and choice of labels.

    Energies are in eV, forces in eV/Angstrom; the virial is minus the stress times the volume, in eV. Structures with
    one or two periodic directions are left out, since the format cannot say them.
    """

    def __init__(self, path: Path, options: WriteOptions) -> None:
        super().__init__(path, options)
        self.mixed = path.name.lower().endswith("-mixed")
        self._systems: dict[tuple[Any, ...], _System] = {}
        self._names: dict[str, int] = {}
        self._held = 0

    def __enter__(self) -> Self:
        if self.path.is_file():
            raise UsageError(f"{self.path} is a file; name a folder")
        if self.path.exists() and not self.options.overwrite:
            raise UsageError(f"{self.path} exists; choose another name, or --overwrite to replace it")
        if self.path.exists() and any(self.path.iterdir()) and not any(self.path.rglob("type.raw")):
            raise UsageError(f"{self.path} holds something else than systems of DeePMD-kit; choose another name")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.draft = stack.enter_context(atomic_folder(self.path))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._flush()

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures; the format has no place for `info`."""
        for key, frame in self._frames(batch):
            system = self._systems.get(key)
            if system is None:
                system = self._systems[key] = self._begin_system(frame["numbers"].astype(np.uint8), key)
            system.frames.append(frame)
            self._held += len(frame["numbers"])
            if len(system.frames) >= SET_FRAMES:
                self._write_set(system)
            if self._held >= HELD_ATOMS:
                self._flush()

    def _frames(self, batch: StructureBatch) -> Iterator[tuple[tuple[Any, ...], dict[str, NDArray[Any]]]]:
        """Yield the key of its system and the arrays of each structure that the format can say."""
        has = {
            name: getattr(batch, f"has_{name}") if getattr(batch, name) is not None else np.zeros(len(batch), bool)
            for name in ("energy", "forces", "stress")
        }
        volume = np.abs(np.linalg.det(batch.cell)) if len(batch) else np.zeros(0)
        for s in range(len(batch)):
            periodic = bool(batch.pbc[s].all())
            atoms = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
            if batch.pbc[s].any() != periodic or atoms.start == atoms.stop:
                self.skip("DeePMD-kit has no structures with one or two periodic axes, or without atoms")
                continue
            frame = {"numbers": batch.numbers[atoms], "coord": batch.positions[atoms].reshape(-1)}
            if periodic:
                frame["box"] = batch.cell[s].reshape(-1)
            if has["energy"][s]:
                frame["energy"] = batch.energy[s]  # type: ignore[index]
            if has["forces"][s]:
                frame["force"] = batch.forces[atoms].reshape(-1)  # type: ignore[index]
            if has["stress"][s] and periodic:
                frame["virial"] = -batch.stress[s].reshape(-1) * volume[s]  # type: ignore[index]
            numbers = frame["numbers"]
            yield (len(numbers) if self.mixed else numbers.tobytes(), *(name for name in frame)), frame

    def _begin_system(self, numbers: NDArray[np.uint8], key: tuple[Any, ...]) -> _System:
        from ase.data import chemical_symbols

        kinds, counts = np.unique(numbers, return_counts=True)
        name = "".join(f"{chemical_symbols[z]}{c}" for z, c in zip(kinds.tolist(), counts.tolist(), strict=True))
        name = str(len(numbers)) if self.mixed else name
        again = self._names.get(name, 0)
        self._names[name] = again + 1
        folder = self.draft / (name if not again else f"{name}.{again}")
        folder.mkdir()
        symbols = chemical_symbols[1:119] if self.mixed else [chemical_symbols[z] for z in kinds.tolist()]
        types = np.zeros(len(numbers), int) if self.mixed else np.searchsorted(kinds, numbers)
        (folder / "type.raw").write_text("".join(f"{t}\n" for t in types.tolist()))
        (folder / "type_map.raw").write_text("".join(f"{symbol}\n" for symbol in symbols))
        if "box" not in key:
            (folder / "nopbc").write_bytes(b"")
        return _System(folder, numbers)

    def _write_set(self, system: _System) -> None:
        if not system.frames:
            return
        folder = system.folder / f"set.{system.sets:03d}"
        folder.mkdir()
        for name in system.frames[0]:
            rows = np.stack([frame[name] for frame in system.frames])
            if name != "numbers":
                np.save(folder / f"{name}.npy", rows.astype(np.float64))
            elif self.mixed:
                np.save(folder / "real_atom_types.npy", rows.astype(np.int32) - 1)
        self._held -= sum(len(frame["numbers"]) for frame in system.frames)
        system.frames, system.sets = [], system.sets + 1

    def _flush(self) -> None:
        for system in self._systems.values():
            self._write_set(system)
