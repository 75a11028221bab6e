"""NumPy archives (`.npz`) of MD17, rMD17 and sGDML: frames of one molecule or crystal; read only.

sGDML's data sets, MD17 among them, hold `z [n]`, `R [F,n,3]`, `E [F]`, `F [F,n,3]`, perhaps `lattice [3,3]` (vectors in
its columns), and the units `r_unit` and `e_unit` where their maker stated them. rMD17 has names of its own and is in
kcal/mol and Angstrom.
"""

from __future__ import annotations

import io
import logging
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.block import Block, Places
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.learning.frames import build_frames, frames_per_block
from atomsieve.structures.item import BadItem, ReadRequest
from atomsieve.structures.units import Units

log = logging.getLogger(__name__)

RMD17 = {"positions": "coords", "numbers": "nuclear_charges", "energy": "energies", "forces": "forces"}
SGDML = {"positions": "R", "numbers": "z", "energy": "E", "forces": "F"}
RMD17_UNITS = Units("kcal/mol", "angstrom", "kcal/mol/angstrom", origin="data set rMD17")
LARGEST_SMALL = 1_000_000
"""Numbers of an array that is read whole."""


class _Archive:
    """The arrays of an archive, read from its front to its end, some frames at a time.

    Raises
    ------
    DataError
        if it is no such archive, is damaged, or holds pickled objects.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path, self._stack = path, stack
        try:
            self._zip = stack.enter_context(zipfile.ZipFile(path))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"{path} is no readable npz file: {error}") from error
        self.names = [name[:-4] for name in self._zip.namelist() if name.endswith(".npy")]

    def open(self, name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]:
        """Return an array's bytes, its shape and its type."""
        try:
            file = self._stack.enter_context(self._zip.open(f"{name}.npy"))
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            columns_first = fortran and len(shape) > 1
            if columns_first and math.prod(shape) <= LARGEST_SMALL and not dtype.hasobject:
                file = io.BytesIO(
                    np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
                    .reshape(shape, order="F")
                    .tobytes()
                )
                columns_first = False
        except Exception as error:  # headers are parsed as Python literals, by the tokenizer where that fails
            log.debug("%s: %s", self.path, name, exc_info=True)
            raise DataError(f"{self.path}: {name} is no readable array: {error}") from error
        if dtype.hasobject:
            raise DataError(f"{self.path}: {name} holds pickled objects, which may run any code and are never loaded")
        if columns_first:
            raise DataError(f"{self.path}: {name} is stored column by column; save it again after np.ascontiguousarray")
        return file, shape, dtype

    def read_rows(self, name: str, file: IO[bytes], count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return the next `count` rows of an array."""
        size = count * math.prod(shape[1:]) * dtype.itemsize
        try:
            data = file.read(size)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.path}: {name} is damaged: {error}") from error
        if len(data) != size:
            raise DataError(f"{self.path}: {name} ends before its {shape[0]:,} rows")
        return np.frombuffer(data, dtype).reshape(count, *shape[1:])

    def read_small(self, name: str) -> NDArray[Any]:
        """Return a small array whole."""
        file, shape, dtype = self.open(name)
        if math.prod(shape) > LARGEST_SMALL or dtype.itemsize > LARGEST_SMALL:
            raise DataError(f"{self.path}: {name} has shape {shape}")
        return np.asarray(self.read_rows(name, file, 1, (1, *shape), dtype)[0])


def read_npz(request: ReadRequest) -> Iterator[Block | BadItem]:
    """Yield the frames of an archive; an archive of something else is `BadItem`.

    Raises
    ------
    DataError
        if it is damaged, or its arrays do not fit together.
    """
    path = request.path
    with ExitStack() as stack:
        archive = _Archive(path, stack)
        keys = next((keys for keys in (RMD17, SGDML) if {keys["positions"], keys["numbers"]} <= {*archive.names}), None)
        if keys is None:
            detail = f"its arrays: {', '.join(archive.names[:12])}" if archive.names else "it has no arrays"
            yield BadItem(
                "no data set of MD17, rMD17 or sGDML ('R' and 'z', 'coords' and 'nuclear_charges')", str(path), detail
            )
            return
        numbers = archive.read_small(keys["numbers"]).reshape(-1)
        opened = {name: archive.open(key) for name, key in keys.items() if name != "numbers" and key in archive.names}
        frames = opened["positions"][1][0] if opened["positions"][1] else 0
        sizes = {"positions": 3 * len(numbers), "forces": 3 * len(numbers), "energy": 1}
        for name, (_, shape, dtype) in opened.items():
            fits = bool(shape) and shape[0] == frames and math.prod(shape[1:]) == sizes[name]
            if not fits or dtype.kind not in "iuf" or numbers.dtype.kind not in "iu":
                raise DataError(
                    f"{path}: {keys[name]} has shape {shape} of {dtype}; {frames} rows of {sizes[name]} numbers were "
                    f"expected for {len(numbers)} atoms"
                )
        units = RMD17_UNITS if keys is RMD17 else _read_units(archive)
        cell = archive.read_small("lattice").T.reshape(3, 3) if "lattice" in archive.names and keys is SGDML else None
        left = sorted({*archive.names} - {*keys.values(), "lattice", "r_unit", "e_unit"})
        step = frames_per_block(len(numbers))
        for start in range(0, frames, step):
            count = min(step, frames - start)
            rows = {n: archive.read_rows(keys[n], *_with(count, opened[n])) for n in opened}
            block = build_frames(
                numbers.astype(np.int64),
                rows["positions"].reshape(count, len(numbers), 3),
                Places(str(path), "frame", np.arange(start, start + count)),
                cell=None if cell is None else np.broadcast_to(cell, (count, 3, 3)),
                pbc=cell is not None,
                info={"energy": rows["energy"].reshape(count).astype(np.float64)} if "energy" in rows else {},
                arrays={"forces": rows["forces"].reshape(count, -1, 3).astype(np.float64)} if "forces" in rows else {},
                units=units,
            )
            if left:
                block.notes[f"with arrays that are not taken: {', '.join(left[:20])}"] = count
            yield block
            request.tick((start + count) / frames)


def _with(count: int, opened: tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]) -> tuple[Any, ...]:
    file, shape, dtype = opened
    return file, count, shape, dtype


def _read_units(archive: _Archive) -> Units:
    """Return the units that a data set of sGDML states; those that it does not are asked for."""
    found = {}
    for name, key in (("length", "r_unit"), ("energy", "e_unit")):
        if key in archive.names:
            found[name] = str(archive.read_small(key))
    needed = (("energy", "kcal/mol in MD17"), ("length", "angstrom in MD17"))
    try:
        return Units(energy=found.get("energy"), length=found.get("length"), origin="the file", needed=needed)
    except UsageError as error:
        raise DataError(f"{archive.path}: e_unit or r_unit: {error}") from error


ROW = Format(
    name="npz",
    about="NumPy archives of MD17, rMD17 and sGDML",
    endings=(".npz",),
    read=read_npz,
)
