"""Neighbour lists that are kept while atoms move little (Verlet lists): found beyond the cutoff, then filtered.

Soundness. A list holds every edge shorter than R = cutoff + skin at positions x and cells C. Later positions are
`x' = x F + u` with F = C^-1 C' (the identity where the cell is the same), so an edge changes into `vec F + u_j - u_i`,
which is at least `s R - 2 max|u|` long if it was R or longer, s being the smallest singular value of F. As long as this
is not below the cutoff, no edge can be missing. A uniform shift of a structure cancels, so u is taken against its mean.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.errors import DataError, UsageError
from atomsieve.graphs.graph import Graph, NeighborList
from atomsieve.graphs.neighbors import build_graph, choose_implementation
from atomsieve.structures.batch import StructureBatch

KEPT = 8
"""Lists held at once, so that the images of a band, or the pieces of a batch, keep theirs."""
USUAL = 1.0
"""Angstrom; a skin that MD and relaxation rebuild every 10 to 50 steps."""
SPARE = 1e-9
"""Angstrom by which a list is given up early, against rounding."""


@dataclass(frozen=True, eq=False)
class _Held:
    """A list at `reach`, where and for whom it was made."""

    cutoff: float
    device: torch.device
    ptr: NDArray[np.int64]
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    base: Graph
    pairs: tuple[Tensor, Tensor]
    offset: Tensor
    shift: Tensor

    def fits(self, batch: StructureBatch, cutoff: float, skin: float, device: torch.device) -> bool:
        """Return whether the list surely holds every edge of the batch that is shorter than the cutoff."""
        if cutoff != self.cutoff or device != self.device or not np.array_equal(batch.ptr, self.ptr):
            return False
        if not np.array_equal(batch.numbers, self.numbers) or not np.array_equal(batch.pbc, self.pbc):
            return False
        reach = cutoff + skin
        before: NDArray[Any] = self.positions
        squeezed: NDArray[Any] = np.ones(len(batch))
        if not np.array_equal(batch.cell, self.cell):
            changed = (batch.cell != self.cell).any((1, 2))
            if (changed & ~batch.pbc.all(1)).any() or not np.isfinite(batch.cell).all():
                return False
            strain = np.broadcast_to(np.eye(3), batch.cell.shape).copy()
            strain[changed] = np.linalg.solve(self.cell[changed], batch.cell[changed])
            squeezed = np.linalg.svd(strain, compute_uv=False)[:, -1]
            before = np.einsum("ni,nij->nj", before, strain[batch.structure_of_atom])
        moved = batch.positions - before
        filled = batch.counts > 0
        if not filled.any():
            return True
        first = batch.ptr[:-1][filled]
        mean = np.add.reduceat(moved, first) / batch.counts[filled, None]
        moved = moved - np.repeat(mean, batch.counts[filled], axis=0)
        farthest = np.sqrt(np.maximum.reduceat(np.einsum("ni,ni->n", moved, moved), first))
        return bool((squeezed[filled] * reach - 2 * farthest >= cutoff + SPARE).all())  # False for NaN

    def graph(self, batch: StructureBatch, dtype: torch.dtype) -> Graph:
        """Return the graph of the batch: edge vectors recomputed, edges at the cutoff or beyond left out."""
        base, (sender, receiver) = self.base, self.pairs
        positions = torch.from_numpy(np.ascontiguousarray(batch.positions, np.float64)).to(self.device)
        offset = self.offset
        if not np.array_equal(batch.cell, self.cell):
            offset = _offsets(self.shift, batch.cell, base.structure.index_select(0, receiver))
        vec = positions.index_select(0, sender) - positions.index_select(0, receiver) + offset
        inside = (vec * vec).sum(1) < self.cutoff * self.cutoff
        chosen = torch.nonzero(inside).squeeze(1)
        before = torch.zeros(len(inside) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(inside, 0, out=before[1:])
        neighbors = NeighborList(
            sender.index_select(0, chosen),
            receiver.index_select(0, chosen),
            base.neighbors.shift.index_select(0, chosen),
            before.index_select(0, base.neighbors.row_ptr),
            self.cutoff,
            True,
        )
        return Graph(base.numbers, base.ptr, base.structure, vec.index_select(0, chosen).to(dtype), neighbors)


def _offsets(shift: Tensor, cell: NDArray[np.float64], home: Tensor) -> Tensor:
    """Return `shift @ cell` [E,3] of edges with shifts [E,3] float64 in the structures `home` [E]."""
    cells = torch.from_numpy(np.ascontiguousarray(cell)).to(shift.device)
    rows = cells[0].unsqueeze(0) if len(cells) == 1 else cells.index_select(0, home)
    return shift[:, 0:1] * rows[:, 0] + shift[:, 1:2] * rows[:, 1] + shift[:, 2:3] * rows[:, 2]


class SkinList:
    """Builds graphs as `build_graph` does, reusing a list while atoms have moved less than about half the skin.

    Give it to a `Predictor` as `build=`. The edges are those of `build_graph`; edge vectors agree to rounding. Cells
    may change too, if periodic along all three vectors. With `max_neighbors`, or a skin of 0, it is `build_graph`.

    Finding a list takes the compiled implementation less time than filtering a held one takes; the others, several
    times more. So `skin=None` means no skin on a CPU with the compiled implementation, and 1 Angstrom elsewhere.

    Attributes
    ----------
    skin : Angstrom beyond the cutoff. calls, builds : how often it was asked, and how often it had to find a list.
    """

    def __init__(self, skin: float | None = None, device: torch.device | str = "cpu") -> None:
        if skin is None:
            skin = 0.0 if choose_implementation("auto", torch.device(device)) == "native" else USUAL
        if isinstance(skin, str) or not 0 <= skin < float("inf"):
            raise UsageError(f"skin must be a number of Angstrom, 0 or more, got {skin}; 0 turns it off, 1 is usual")
        self.skin = float(skin)
        self.calls = self.builds = 0
        self._held: deque[_Held] = deque(maxlen=KEPT)

    def __call__(
        self,
        batch: StructureBatch,
        cutoff: float,
        *,
        max_neighbors: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Graph:
        """Return the graph of a batch; parameters and errors as `build_graph`."""
        self.calls += 1
        where = torch.device(device)
        if self.skin == 0 or max_neighbors is not None:
            self.builds += 1
            return build_graph(batch, cutoff, max_neighbors=max_neighbors, device=where, dtype=dtype)
        for held in self._held:
            if held.fits(batch, cutoff, self.skin, where):
                if held is not self._held[0]:
                    self._held.remove(held)
                    self._held.appendleft(held)
                return held.graph(batch, dtype)
        self.builds += 1
        try:
            wide = build_graph(batch, cutoff + self.skin, device=where, dtype=torch.float64)
        except DataError:  # too dense with the skin, perhaps not without it
            return build_graph(batch, cutoff, device=where, dtype=dtype)
        held = _hold(batch, cutoff, wide, where)
        self._held.appendleft(held)
        return held.graph(batch, dtype)

    def clear(self) -> None:
        """Forget all lists."""
        self._held.clear()


def _hold(batch: StructureBatch, cutoff: float, wide: Graph, device: torch.device) -> _Held:
    """Keep copies of the input of a list, with the device as it was requested (a tensor on "cuda" reports "cuda:0")."""
    neighbors = wide.neighbors
    shift = neighbors.shift.double()
    home = wide.structure.index_select(0, neighbors.receiver)
    return _Held(
        cutoff,
        device,
        np.array(batch.ptr),
        np.array(batch.numbers),
        np.array(batch.positions, np.float64),
        np.array(batch.cell),
        np.array(batch.pbc),
        wide,
        (neighbors.sender, neighbors.receiver),
        _offsets(shift, batch.cell, home),
        shift,
    )
