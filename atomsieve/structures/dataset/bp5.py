"""The one place that talks to ADIOS2: steps of plain arrays into and out of a BP5 directory.

The library checks little: a selection past the end gives zeros, a buffer of the wrong size is overrun, a transposed
array is written wrongly, selections persist between reads. So here every array is made contiguous, every read states
its full selection, and every bound is checked first.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError

DATA_FILES: tuple[str, ...] = ("data.0", "md.0", "md.idx", "mmd.0")
"""What a BP5 directory of one writer holds."""

FULL = 1 << 16
"""A disk with fewer bytes free is full: no step fits."""

DTYPES: dict[str, np.dtype] = {
    "double": np.dtype(np.float64),
    "float": np.dtype(np.float32),
    **{f"{kind}{bits}_t": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "char": np.dtype(np.int8),
}
"""ADIOS2 type name -> numpy dtype."""


def import_lightly() -> None:
    """Import adios2 without the torch that it would import only to accept tensors: 0.3 s in place of 2 s.

    For programs with one thread; where torch is loaded already this changes nothing.
    """
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import adios2  # noqa: F401
    finally:
        del sys.modules["torch"]


_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def format_reason(error: BaseException) -> str:
    """Return the useful end of an ADIOS2 message, without colours, times and the chain of C++ names."""
    text = " ".join(_ANSI.sub("", str(error)).split())
    text = re.sub(r"\[[^\]]*\] \[ADIOS2 EXCEPTION\]", "", text)
    text = re.sub(r"<[\w:~ ]+>", "", text).strip(" :")
    return text.split("errno = 28:")[-1].strip() if "errno = 28" in text else text[:200] or type(error).__name__


class Bp5Writer:
    """Writes steps of arrays into a new BP5 directory. Nothing else may exist at `path`."""

    def __init__(self, path: Path) -> None:
        import adios2

        if path.exists():
            raise DataError(f"{path} exists; a part is never written over")
        self.path = path
        self.steps = 0
        self._adios = adios2.Adios()
        io = self._adios.declare_io("writer")
        io.set_engine("BP5")
        io.set_parameter("Profile", "Off")
        try:
            self._stream: Any = adios2.Stream(io, str(path), "w")
        except RuntimeError as error:
            raise DataError(f"cannot write {path}: {format_reason(error)}") from error

    def write(self, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str] | None = None) -> int:
        """Write one step and return the size of the data file after it. An array of no rows gets one row of zeros.

        Raises
        ------
        DataError
            if the system refuses (a full disk); the directory is then worthless.
        """
        stream = self._stream
        try:
            stream.begin_step()
            for name, value in (attributes or {}).items():
                stream.write_attribute(name, value)
            for name, array in arrays.items():
                rows = array if len(array) else np.zeros((1, *array.shape[1:]), array.dtype)
                rows = np.require(rows, requirements=("C", "W"))  # ADIOS2 takes no array that is read-only
                shape = list(rows.shape)
                stream.write(name, rows, shape, [0] * rows.ndim, shape)
            stream.end_step()
        except (RuntimeError, OSError) as error:
            self._stream = None  # closing after a failed step aborts the process
            raise DataError(f"cannot write {self.path}: {self._reason(error)}") from error
        self.steps += 1
        return (self.path / "data.0").stat().st_size

    def close(self) -> None:
        """Close the directory; after a failure this does nothing.

        Raises
        ------
        DataError
            if the system refuses.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            stream.close()
        except (RuntimeError, OSError) as error:
            raise DataError(f"cannot write {self.path}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        """Return why a write failed. A full disk may come as a mere "iostream error", of kind PermissionError."""
        reason = format_reason(error)
        full = shutil.disk_usage(self.path.parent).free < FULL
        return f"{reason} (No space left on device)" if full and "No space left" not in reason else reason


class Bp5Reader:
    """Random access to the steps of a BP5 directory. For one thread; open the directory again in another."""

    def __init__(self, path: Path) -> None:
        import adios2

        self.path = path
        self._adios = adios2.Adios()
        io = self._adios.declare_io("reader")
        io.set_parameter("Threads", "1")  # the default starts threads in every read: 17 times slower
        try:
            self._file: Any = adios2.FileReader(io, str(path))
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{path} is not a readable BP5 directory: {format_reason(error)}") from error
        self._variables: dict[str, Any] = {}

    def variables(self) -> dict[str, int]:
        """Return the name of every variable and the number of steps that have it."""
        return {name: int(info["AvailableStepsCount"]) for name, info in self._file.available_variables().items()}

    def attributes(self) -> list[str]:
        """Return the names of all attributes."""
        return list(self._file.available_attributes())

    def attribute(self, name: str) -> Any:
        """Return an attribute: a string, a list of strings, or an array."""
        kind = self._file.available_attributes()[name]["Type"]
        return self._file.read_attribute_string(name) if kind == "string" else self._file.read_attribute(name)

    def _variable(self, name: str, step: int) -> Any:
        found = self._variables.get(name)
        if found is None:
            found = self._file.inquire_variable(name)
            if found is None:
                raise DataError(f"{self.path} has no variable {name!r}")
            self._variables[name] = found
        if not 0 <= step < found.steps():
            raise DataError(f"{self.path}: variable {name!r} has {found.steps()} steps, step {step} was asked for")
        found.set_step_selection([step, 1])
        return found

    def shape(self, name: str, step: int) -> tuple[int, ...]:
        """Return the shape of a variable at a step."""
        return tuple(int(n) for n in self._variable(name, step).shape())

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype of a variable."""
        kind = self._variable(name, 0).type()
        if kind not in DTYPES:
            raise DataError(f"{self.path}: variable {name!r} has type {kind}, which is not a number")
        return DTYPES[kind]

    def read(self, name: str, step: int, start: int, count: int) -> NDArray[Any]:
        """Return rows `start:start+count` of a variable at a step, in its own dtype and trailing shape.

        Raises
        ------
        DataError
            if there is no such variable or step, or the rows are not all there.
        """
        variable = self._variable(name, step)
        shape = tuple(int(n) for n in variable.shape())
        if not shape or not 0 <= start <= start + count <= shape[0]:
            raise DataError(f"{self.path}: rows {start}:{start + count} of {name!r} of shape {shape} were asked for")
        out = np.zeros((count, *shape[1:]), self.dtype(name))
        if out.size == 0:
            return out
        self._get(name, step, [start, *([0] * (len(shape) - 1))], out)
        return out

    def touch(self, name: str, step: int) -> None:
        """Read the first and the last element of a variable at a step; it fails somehow if they are not there."""
        shape = self.shape(name, step)
        if shape and 0 not in shape:
            one = np.zeros([1] * len(shape), self.dtype(name))
            self._get(name, step, [0] * len(shape), one)
            self._get(name, step, [n - 1 for n in shape], one)

    def _get(self, name: str, step: int, start: list[int], out: NDArray[Any]) -> None:
        from adios2 import bindings

        variable = self._variable(name, step)  # sets the step; a selection persists between reads, so both are set
        variable.set_selection([start, list(out.shape)])
        try:
            self._file.engine.get(variable, out, bindings.Mode.Sync)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"cannot read {name!r} from {self.path}: {format_reason(error)}") from error

    def close(self) -> None:
        """Close the files; the reader is useless afterwards."""
        self._variables.clear()
        file, self._file = self._file, None
        if file is not None:
            file.close()
