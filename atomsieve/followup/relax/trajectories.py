"""Trajectories of a relaxation: one extxyz file for each structure, which a continued run extends."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.minimiser import Minimiser
from atomsieve.calculators.relax_result import Stop

HELD = 1 << 26
"""Characters held in memory before they are written."""


class Frames:
    """Writes every n-th step, and the last, of the structures of a group; a Python loop over frames, only on request.

    Parameters
    ----------
    folder : of the files, `<position>.extxyz`. positions : [S], of the structures in the input. every : n.
    """

    def __init__(self, folder: Path, positions: NDArray[np.int64], every: int) -> None:
        self.folder, self.positions, self.every = folder, positions, every
        self._texts: dict[int, list[str]] = {}
        self._sizes: dict[int, int] = {}
        self._held = 0

    def note(self, fire: Minimiser, done: NDArray[np.int64]) -> None:
        """Record the structures that were just evaluated; `done` are those of them that left the batch."""
        from ase.io.extxyz import write_extxyz

        result = fire.result
        going = fire.active[result.steps[fire.active] % self.every == 0]
        chosen = np.concatenate([going, done[result.reason[done] != Stop.FAILED]])
        if not len(chosen):
            return
        labelled = result.batch.replace(energy=result.energy, forces=result.forces, stress=result.stress)
        for s, atoms in zip(chosen.tolist(), labelled.take(chosen).to_ase(), strict=True):
            atoms.info["step"] = int(result.steps[s])
            text = io.StringIO()
            write_extxyz(text, [atoms])
            self._texts.setdefault(s, []).append(text.getvalue())
            self._held += len(self._texts[s][-1])
        if self._held > HELD:
            self.flush()

    def flush(self) -> dict[int, int]:
        """Write and sync the frames in memory, and return the size of each file, by structure."""
        if self._texts:
            self.folder.mkdir(exist_ok=True)
        for s, texts in self._texts.items():
            data = "".join(texts).encode()
            with open(self._path(s), "ab" if s in self._sizes else "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._sizes[s] = self._sizes.get(s, 0) + len(data)
        self._texts, self._held = {}, 0
        return dict(self._sizes)

    def resume(self, sizes: dict[int, int]) -> None:
        """Cut the files of an earlier process back to the state that it left."""
        self._sizes = sizes
        for s, size in sizes.items():
            os.truncate(self._path(s), size)

    def _path(self, s: int) -> Path:
        return self.folder / f"{self.positions[s]}.extxyz"
