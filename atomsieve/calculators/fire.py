"""The FIRE algorithm for many structures at once: each takes the steps of `ase.optimize.FIRE`.

Bitzek et al., PRL 97, 170201 (2006), with ASE's default parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.minimiser import Minimiser

Array = NDArray[np.float64]
DT, DT_MAX, MAX_STEP, N_MIN, F_INC, F_DEC, A_START, F_A = 0.1, 1.0, 0.2, 5, 1.1, 0.5, 0.1, 0.99
"""Parameters as in ASE; a step is at most MAX_STEP (Angstrom) long, over all coordinates of a structure."""


class Fire(Minimiser):
    """A relaxation by FIRE; see `Minimiser`."""

    velocity: Array
    cell_velocity: Array
    dt: Array
    alpha: Array
    downhill: NDArray[np.int64]
    of_structures: ClassVar[tuple[str, ...]] = (*Minimiser.of_structures, "cell_velocity", "dt", "alpha", "downhill")
    of_atoms: ClassVar[tuple[str, ...]] = (*Minimiser.of_atoms, "velocity")

    def _begin(self, many: int, atoms: int) -> dict[str, NDArray[Any]]:
        """Return velocities of zero, and the parameters of FIRE at the start."""
        return {
            "cell_velocity": np.zeros((many, 3, 3)),
            "velocity": np.zeros((atoms, 3)),
            "dt": np.full(many, DT),
            "alpha": np.full(many, A_START),
            "downhill": np.zeros(many, np.int64),
        }

    def step(self) -> None:
        """Move the active structures by one step of FIRE."""
        forces, v = self.forces, self.velocity
        cell_forces, w = self.cell_forces, self.cell_velocity
        power = self._dot(forces, v, cell_forces, w)  # P = F.v, Bitzek et al., step F1
        first = self.result.steps[self.active] == 0
        down = power > 0
        mix = np.where(down, self.alpha, 0)
        norm = np.sqrt(self._dot(v, v, w, w) / np.maximum(self._dot(forces, forces, cell_forces, cell_forces), 1e-300))
        keep, gain = np.where(down, 1 - mix, 0), mix * norm
        faster = down & (self.downhill > N_MIN)
        slower = ~down & ~first
        # step F3 (P > 0 for more than N_MIN steps): longer time step, less mixing; step F4 (P <= 0): shorter, and v = 0
        self.dt = np.where(faster, np.minimum(self.dt * F_INC, DT_MAX), np.where(slower, self.dt * F_DEC, self.dt))
        self.alpha = np.where(faster, self.alpha * F_A, np.where(down, self.alpha, A_START))
        self.downhill = np.where(down, self.downhill + 1, 0)
        here = self.home
        # step F2: v = (1 - alpha) v + alpha |v| F / |F|, then Euler integration with unit masses
        self.velocity = keep[here, None] * v + (gain + self.dt)[here, None] * forces
        self.cell_velocity = keep[:, None, None] * w + (gain + self.dt)[:, None, None] * cell_forces
        length = self.dt * np.sqrt(self._dot(self.velocity, self.velocity, self.cell_velocity, self.cell_velocity))
        scale = self.dt * np.minimum(1, MAX_STEP / np.maximum(length, 1e-300))
        self._move(
            self.frame + scale[here, None] * self.velocity,
            self.log_strain + (scale / self.own.counts)[:, None, None] * self.cell_velocity,
        )
