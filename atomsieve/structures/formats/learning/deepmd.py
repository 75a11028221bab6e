"""Systems of DeePMD-kit: folders of npy files, or groups of an HDF5 file; standard, or of mixed types.

A system has `type.raw` (the type of each atom), `type_map.raw` (their names), perhaps `nopbc`, and folders `set.*` with
`coord.npy [F,3n]`, `box.npy [F,9]`, `energy.npy [F]`, `force.npy [F,3n]`, `virial.npy [F,9]` in eV and Angstrom; the
virial is minus the stress times the volume. In a system of mixed types, `real_atom_types.npy [F,n]` gives the type of
each atom in each frame, -1 where there is none.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.block import Block, Places
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.learning.deepmd_sink import DeepmdSink
from atomsieve.structures.formats.learning.frames import build_frames, frames_per_block, read_numbers_of_types
from atomsieve.structures.item import ReadRequest
from atomsieve.structures.units import Units

log = logging.getLogger(__name__)

UNITS = Units("eV", "angstrom", "eV/angstrom", virial="eV", origin="format deepmd")
OF_ATOMS = ("force", "force_mag", "spin", "atom_ener", "atom_pref", "atom_dipole", "atom_polarizability", "aparam")
"""Arrays with numbers for each atom; all others are of whole frames."""
LARGEST_TEXT = 100_000_000


class SystemFiles(ABC):
    """The files of a system, or of one of its sets, by name."""

    def __init__(self, where: str) -> None:
        self.where = where

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the files and folders, sorted."""

    @abstractmethod
    def read_text(self, name: str) -> list[str]:
        """Return the words of a small text file."""

    @abstractmethod
    def open_array(self, name: str) -> Any:
        """Return an array that can be sliced without being read whole."""

    @abstractmethod
    def enter(self, name: str) -> SystemFiles:
        """Return the files of a folder in it."""


class FolderFiles(SystemFiles):
    """A system in a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def names(self) -> list[str]:
        """Return the names of the files and folders, sorted."""
        return sorted(file.name for file in self.path.iterdir())

    def read_text(self, name: str) -> list[str]:
        """Return the words of a small text file."""
        file = self.path / name
        if file.stat().st_size > LARGEST_TEXT:
            raise DataError(f"{file} has {file.stat().st_size:,} bytes; so many atoms are no system")
        return file.read_text(errors="replace").split()

    def open_array(self, name: str) -> Any:
        """Return an npy file as mapped memory."""
        file = self.path / name
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # headers are parsed as Python literals, by the tokenizer where that fails
            log.debug("%s", file, exc_info=True)
            raise DataError(f"{file} is no readable npy file, or is cut off: {error}") from error
        if not isinstance(array, np.ndarray):
            raise DataError(f"{file} is an archive of arrays, not one array")
        return array

    def enter(self, name: str) -> SystemFiles:
        """Return the files of a folder in it."""
        return FolderFiles(self.path / name)


def is_deepmd_folder(path: Path) -> bool:
    """Return True for the folder of one system, also for one that has raw text only, so that reading it says so."""
    return (path / "type.raw").is_file() and any(
        _is_set(name) or name == "coord.raw" for name in FolderFiles(path).names()
    )


def _is_set(name: str) -> bool:
    return name.startswith("set.")


def count_frames(path: Path) -> int:
    """Return the number of frames of a system."""
    files = FolderFiles(path)
    return sum(len(files.enter(name).open_array("coord.npy")) for name in files.names() if _is_set(name))


def read_deepmd(request: ReadRequest) -> Iterator[Block]:
    """Yield the frames of a system.

    Raises
    ------
    DataError
        if files are missing, cut off, do not fit together, or their types are no elements.
    """
    files = FolderFiles(request.path)
    if not request.path.is_dir() or not {"type.raw"} <= {*files.names()} or not any(map(_is_set, files.names())):
        raise DataError(
            f"{request.path} is no system of npy files: type.raw and folders set.* are expected; raw text files become "
            "npy files by dpdata (from deepmd/raw to deepmd/npy)"
        )
    yield from read_system(files, request)


def read_system(files: SystemFiles, request: ReadRequest) -> Iterator[Block]:
    """Yield the frames of a system from its files, whatever holds them."""
    names = files.names()
    types = _read_types(files)
    if "type_map.raw" in names:
        map_names = files.read_text("type_map.raw")
    elif request.elements:
        map_names = list(request.elements)
    else:
        raise DataError(
            f"{files.where}: type_map.raw is missing, so the elements of the types {_span(types)} are not known; name "
            "them in order with --elements, such as --elements O,H"
        )
    numbers = read_numbers_of_types(map_names, request.elements, files.where)
    sets = [name for name in names if _is_set(name)]
    first, stop = 0, request.stop
    total = stop or 0
    if stop is None:
        total = sum(len(files.enter(name).open_array("coord.npy")) for name in sets)
    for name in sets:
        one = _Set(files.enter(name), types, numbers, periodic="nopbc" not in names)
        start, end = max(request.start - first, 0), one.frames if stop is None else min(stop - first, one.frames)
        for row in range(start, end, one.step):
            last = min(row + one.step, end)
            yield one.read(row, last, first)
            request.tick((first + last - request.start) / max(total - request.start, 1))
        first += one.frames


def _read_types(files: SystemFiles) -> NDArray[np.int64]:
    words = files.read_text("type.raw")
    try:
        types = np.array([int(word) for word in words], np.int64)
    except ValueError as error:
        raise DataError(f"{files.where}: type.raw holds something else than whole numbers: {error}") from None
    if not len(types) or types.min() < 0:
        raise DataError(f"{files.where}: type.raw must hold a type from 0 on for each atom, got {_span(types)}")
    return types


def _span(types: NDArray[Any]) -> str:
    return f"{types.min()} to {types.max()}" if len(types) else "none"


class _Set:
    """One set of frames: its arrays, whose sizes fit together."""

    def __init__(
        self, files: SystemFiles, types: NDArray[np.int64], numbers: NDArray[np.int64], *, periodic: bool
    ) -> None:
        self.files, self.types, self.numbers, self.periodic = files, types, numbers, periodic
        names = [name[:-4] for name in files.names() if name.endswith(".npy")]
        if "coord" not in names:
            raise DataError(f"{files.where} has no coord.npy")
        if periodic and "box" not in names:
            raise DataError(
                f"{files.where} has no box.npy, and the system no file nopbc that would say that it is not periodic; "
                "add one of them"
            )
        self.arrays = {name: files.open_array(f"{name}.npy") for name in names}
        self.frames = len(self.arrays["coord"]) if self.arrays["coord"].shape else 0
        atoms = len(types)
        self.step = frames_per_block(atoms)
        self.mixed = "real_atom_types" in names
        if not self.mixed and types.max() >= len(numbers):
            raise DataError(f"{files.where}: types {_span(types)}, but there are names of {len(numbers)} types")
        sizes = {"coord": 3 * atoms, "force": 3 * atoms, "box": 9, "virial": 9, "energy": 1, "real_atom_types": atoms}
        for name, array in self.arrays.items():
            size = int(np.prod(array.shape[1:], dtype=np.int64))
            kind = "iu" if name == "real_atom_types" else "f"
            if array.dtype.kind not in kind + "iu":
                raise DataError(f"{files.where}: {name}.npy holds {array.dtype}, no numbers")
            fits = size == sizes[name] if name in sizes else name not in OF_ATOMS or size % atoms == 0
            if not array.shape or len(array) != self.frames or not fits:
                expected = f"[{self.frames},{sizes.get(name, f'a multiple of {atoms}')}]"
                raise DataError(
                    f"{files.where}: {name}.npy has shape {tuple(array.shape)}; {expected} was expected for "
                    f"{self.frames} frames of {atoms} atoms"
                )

    def read(self, start: int, stop: int, first: int) -> Block:
        """Return the frames `start:stop`; `first` is the place of the set's first frame in the system."""
        atoms, count = len(self.types), stop - start
        info, arrays = {}, {}
        for name, array in self.arrays.items():
            if name in ("coord", "box", "real_atom_types"):
                continue
            rows = np.asarray(array[start:stop])
            if rows.dtype.kind == "f":
                rows = rows.astype(np.float64)
            if name in OF_ATOMS:
                arrays[name] = rows.reshape(count, atoms, -1)
            else:
                info[name] = rows.reshape(count, -1)[:, 0] if name == "energy" else rows.reshape(count, -1)
        return build_frames(
            self._read_numbers(start, stop),
            np.asarray(self.arrays["coord"][start:stop]).reshape(count, atoms, 3),
            Places(self.files.where, "frame", np.arange(start, stop)),
            # the box of a system without periodicity is a placeholder
            cell=np.asarray(self.arrays["box"][start:stop]).reshape(count, 3, 3) if self.periodic else None,
            pbc=self.periodic,
            info=info,
            arrays=arrays,
            units=UNITS,
            start=first + start,
        )

    def _read_numbers(self, start: int, stop: int) -> NDArray[np.int64]:
        if not self.mixed:
            return self.numbers[self.types]
        types = np.asarray(self.arrays["real_atom_types"][start:stop], np.int64).reshape(stop - start, -1)
        if types.min() < -1 or types.max() >= len(self.numbers):
            raise DataError(
                f"{self.files.where}: real_atom_types.npy holds {_span(types)}, but there are names of "
                f"{len(self.numbers)} types"
            )
        return np.append(self.numbers, -1)[types]


ROW = Format(
    name="deepmd",
    about="systems of DeePMD-kit as npy files, standard and of mixed types; each folder is one system",
    endings=(".deepmd", ".deepmd-mixed"),
    read=read_deepmd,
    sink=DeepmdSink,
    lacks="charge, spin, id, source; structures with one or two periodic directions",
    is_folder=is_deepmd_folder,
    extent=count_frames,
)
