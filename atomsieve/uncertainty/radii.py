"""Covalent radii of the elements (ASE's), and when two atoms count as bonded."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii

from atomsieve.models.elements import MAX_NUMBER

BOND = 1.25
"""Neighbours are bonded if they are closer than this times the sum of their covalent radii."""
SIZE = MAX_NUMBER + 1
RADII = np.nan_to_num(np.asarray(covalent_radii[:SIZE], float), nan=1.5)
SUMS = RADII[:, None] + RADII[None, :]
