"""Probes BP directories of other programs in a child process, which may crash or hang without harm.

Damaged metadata make ADIOS2 fall over (SIGSEGV), truncated data make it wait for ever. So a child process opens the
files, reads the first and last element of every variable, and prints names, types and shapes as JSON.
"""

from __future__ import annotations

import json
import logging
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import DataError
from atomsieve.structures.dataset.bp5 import Bp5Reader, import_lightly

log = logging.getLogger(__name__)

MARK = "atomsieve-probe "
LONGEST_ATTRIBUTE = 1_000_000
_HEADER = 64


def probe_directory(path: Path, timeout: float) -> dict[str, Any]:
    """Return `{"variables": {name: {"type", "shapes": [per step]}}, "attributes": {name: value}}` of a BP directory.

    Raises
    ------
    DataError
        if it cannot be read, whatever the library does about it.
    """
    _check_length(path)
    command = [sys.executable, "-m", "atomsieve.structures.dataset.probe", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{path} cannot be read: no answer within {timeout:g} s; its data are probably truncated, copy it again"
        ) from error
    lines = done.stdout.decode(errors="replace").splitlines()
    answer = next((line[len(MARK) :] for line in lines if line.startswith(MARK)), None)
    if answer is None or done.returncode != 0:
        log.debug("probe of %s: %s", path, done.stderr.decode(errors="replace"))
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        raise DataError(f"{path} cannot be read: the BP5 library crashed on it ({how}); it is damaged, copy it again")
    found: dict[str, Any] = json.loads(answer)
    if "error" in found:
        raise DataError(found["error"])
    return found


def _check_length(path: Path) -> None:
    """Refuse data shorter than the index states, since reading them hangs; checked for files of one writer only."""
    try:
        index = (path / "md.idx").read_bytes()
        length = (path / "data.0").stat().st_size
    except OSError as error:
        raise DataError(f"{path} is not a complete BP5 directory: {error.filename} cannot be read") from error
    if (path / "data.1").exists() or len(index) < _HEADER:
        return
    at, last = _HEADER, 0
    while at + 9 <= len(index):
        kind, size = chr(index[at]), struct.unpack_from("<Q", index, at + 1)[0]
        body = index[at + 9 : at + 9 + size]
        if kind == "s" and len(body) >= 32:
            last = struct.unpack_from("<Q", body, 24)[0]
        at += 9 + size
    if last > length:
        raise DataError(f"{path / 'data.0'} has {length} bytes, its index says more than {last}; copy it again")


def _look(path: Path) -> dict[str, Any]:
    reader = Bp5Reader(path)
    variables: dict[str, Any] = {}
    for name, steps in reader.variables().items():
        shapes = [reader.shape(name, step) for step in range(steps)]
        try:
            kind = reader.dtype(name).name
        except DataError:
            kind = ""  # not a number: of no use to us
        variables[name] = {"type": kind, "shapes": shapes}
        if kind:
            for step in {0, steps - 1} if steps else ():
                reader.touch(name, step)
    attributes = {}
    for name in reader.attributes():
        value = reader.attribute(name)
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if len(str(value)) <= LONGEST_ATTRIBUTE:
            attributes[name] = value
    return {"variables": variables, "attributes": attributes}


def _main(path: str) -> None:
    import_lightly()
    try:
        found = _look(Path(path))
    except DataError as error:
        found = {"error": str(error)}
    sys.stdout.write(MARK + json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
