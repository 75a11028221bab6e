"""A screening run of the fakes in which structures kill: a program, and the predictor it computes with.

    python fault_program.py BATCH.npz OUT '{"poison": [1070], "reads": [], "told": []}'

The predictor kills its process by SIGKILL when it is given a structure with one of the ids `poison`. The reader does so
for the ids `reads`. With `told`, ids raise an error instead. `until` names a file: once it is there nothing kills.
`once` names a folder where deaths are marked: each id kills only once. With `device` ids make a GPU fail.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from tests.screen.screen_fakes import FakePredictor, MemoryReader, load, without_torch

without_torch()  # also in the process that computes suspects, which loads what is defined here


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Poisonous(FakePredictor):
    """Dies of some structures."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__()
        self.order = order

    def before(self, batch) -> None:
        if np.isin(batch.id, self.order.get("told", [])).any():
            raise ValueError("springs are broken")
        if np.isin(batch.id, self.order.get("device", [])).any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")
        found = np.intersect1d(batch.id, self.order.get("poison", []))
        if len(found) == 0 or os.path.exists(self.order.get("until", "")):
            return
        if "once" in self.order:
            mark = Path(self.order["once"]) / str(found[0])
            if mark.exists():
                return
            mark.touch()
        kill()


class PoisonousReader(MemoryReader):
    """Dies of some structures before it has read them."""

    def __init__(self, path: str, deadly: list[int]) -> None:
        super().__init__(load(path))
        self.deadly = deadly

    def read(self, start, stop, fields=None):
        if np.isin(self.batch.id[start:stop], self.deadly).any():
            kill()
        return super().read(start, stop, fields)


class Bound(Poisonous):
    """Cannot be sent to another process."""

    def __reduce__(self):
        raise TypeError("stays here")


def main() -> None:
    from rich.console import Console

    from atomsieve.errors import AtomSieveError
    from atomsieve.runs.mpi import connect_ranks
    from atomsieve.screen.finish import print_result
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen

    source, out, order = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    comm = connect_ranks()
    small = {"chunk_size": 64, "max_atoms": 200, "commit_seconds": 0.0, "top": 50}
    options = ScreenOptions(**{**small, **order.get("options", {})})
    predictor = (Bound if order.get("bound") else Poisonous)(order)
    reader = PoisonousReader(source, order.get("reads", []))
    try:
        result = run_screen(
            source,
            "gfm",
            options,
            out=out,
            predictor=predictor,
            reader=reader,
            comm=comm,
            console=Console(stderr=True, width=300),
        )
    except AtomSieveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if result.rank == 0:
        print_result(Console(width=300), result, by="energy_per_atom", shown=3)
    sys.exit(result.exit_code)


if __name__ == "__main__":
    from tests.screen.quarantine import fault_program  # by this name another process can load what is defined here

    fault_program.main()
