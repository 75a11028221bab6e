"""Predictors of a cascade without a model: the cheaper one is off by an amount that only a structure's id decides.

Run as a program it is a cascade, for tests under mpirun:

    mpirun -n 2 python cascade_fakes.py BATCH.npz OUT '{"where": "max_force < 6"}' '{"at": 3}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.structures import StructureBatch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # for the program

from tests.screen.screen_fakes import FakePredictor, MemoryReader, load

SMALL: dict[str, Any] = {"chunk_size": 64, "max_atoms": 200, "commit_seconds": 0.0, "top": 40, "cascade": "bf16:fp32"}


def noise(ids: np.ndarray, column: int) -> np.ndarray:
    """Return a number in [-1, 1] for each id, the same in any batch."""
    return 2.0 * np.modf(np.abs(np.sin(12.9898 * ids + 78.233 * column) * 43758.5453))[0] - 1.0


class Better(FakePredictor):
    """The better precision; raises at a call or gets a signal there. `pause`: seconds that each call takes."""

    def __init__(self, at: int | None = None, number: int | None = None, pause: float = 0.0) -> None:
        super().__init__()
        self.at, self.number, self.pause = at, number, pause

    def before(self, batch: StructureBatch) -> None:
        time.sleep(self.pause)
        if self.at is not None and self.calls >= self.at:
            if self.number is None:
                raise ZeroDivisionError
            os.kill(os.getpid(), self.number)


class Cheap(Better):
    """The same, with errors of about `amplitude` in units of the columns' scales.

    wild : factor of the forces of a few structures, by id.
    """

    def __init__(self, amplitude: float = 0.02, wild: dict[int, float] | None = None, **fault: Any) -> None:
        super().__init__(**fault)
        self.precision, self.amplitude, self.wild = "bf16", amplitude, wild or {}

    def __call__(self, batch: StructureBatch, want: Any, head: str | None = None, **more: Any) -> Any:
        exact = super().__call__(batch, want, head)
        off = self.amplitude * noise(batch.id, 0) * batch.counts
        factor = (1 + self.amplitude * noise(batch.id, 1)) * [self.wild.get(int(i), 1.0) for i in batch.id]
        vectors = exact.forces * np.repeat(factor, batch.counts)[:, None]
        distance = exact.distance + self.amplitude * noise(batch.id, 2)
        far = np.where(exact.status == 0, 8 * (distance > 1), exact.outside).astype(np.uint8)
        return replace(
            exact,
            energy=exact.energy + off,
            forces=vectors,
            distance=distance,
            outside=far,
            in_domain=(exact.status == 0) & (far == 0),
            energy_std=exact.energy_std * (1 + 0.1 * off),
        )


def cascade(
    source: StructureBatch,
    out: Path,
    cheap: Cheap,
    better: Better,
    comm: Any = None,
    overwrite: bool = False,
    **given: Any,
) -> Any:
    """Run a cascade of two fakes."""
    from atomsieve.screen.cascade.predictors import CascadePredictor
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen

    options = ScreenOptions(**{**SMALL, **given})
    pair: Any = CascadePredictor(cheap, better, options)
    return run_screen(
        "candidates",
        "gfm",
        options,
        out=out,
        predictor=pair,
        reader=MemoryReader(source),
        comm=comm,
        overwrite=overwrite,
    )


def main() -> None:
    import types

    import atomsieve

    for name in ("predict", "graphs"):  # without torch, as in screen_fakes
        package = types.ModuleType(f"atomsieve.{name}")
        package.__path__ = [str(Path(atomsieve.__file__).parent / name)]
        sys.modules[package.__name__] = package
    from atomsieve.runs.mpi import connect_ranks

    source, out, options, order = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
    comm = connect_ranks()
    mine = order.get("rank", comm.rank) == comm.rank
    number = signal.Signals[order.get("signal", "SIGKILL")]
    better = Better(order.get("at") if mine else None, number, order.get("pause", 0.0))
    result = cascade(load(source), Path(out), Cheap(), better, comm, **options)
    sys.exit(result.exit_code)


if __name__ == "__main__":
    main()
