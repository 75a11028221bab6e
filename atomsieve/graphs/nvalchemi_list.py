"""Neighbours by NVIDIA's nvalchemi-toolkit-ops (Warp kernels, meant for CUDA; they run on the CPU as well)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atomsieve.errors import require
from atomsieve.graphs.lattice import Lattices, lattices
from atomsieve.graphs.limits import MAX_NEIGHBORS_PER_ATOM, TOO_DENSE, raise_graph_error
from atomsieve.graphs.torch_list import Found, exact, list_order
from atomsieve.structures.batch import StructureBatch

ATOMS_FOR_CELL_LIST = 400
"""Structures with more atoms than this on average go through cell lists instead of all pairs."""


def _full_cells(batch: StructureBatch, lattice: Lattices, cutoff: float) -> np.ndarray:
    """Return cells [S,3,3] with a vector along every axis: where not periodic, perpendicular and longer than the atoms.

    The kernels invert the cell and are wrong where a non-periodic vector is zero or short.
    """
    pbc = batch.pbc.astype(bool)
    order = np.argsort(pbc, axis=1, kind="stable")  # as `lattices` orders them: the first places are not periodic
    free = ~np.take_along_axis(pbc, order, 1)[:, :, None]
    long = lattice.frame * (2 * lattice.extent + 4 * cutoff)[:, None, None]
    given = np.take_along_axis(batch.cell, order[:, :, None], 1)
    cell = np.empty_like(given)
    np.put_along_axis(cell, order[:, :, None], np.where(free, long, given), 1)
    return cell


def _width(batch: StructureBatch, lattice: Lattices, cutoff: float) -> int:
    """Guess the largest number of neighbours: twice that of a uniform density, at least 64."""
    full = lattice.rank == 3
    density = np.where(full, batch.counts / np.where(full, lattice.volume, 1.0), 0.1)
    guess = 2 * density.max(initial=0.0) * 4 / 3 * np.pi * cutoff**3
    return int(np.clip(guess, 64, MAX_NEIGHBORS_PER_ATOM))


def nvalchemi_edges(batch: StructureBatch, cutoff: float, device: torch.device) -> Found:
    """Return the edges of a batch in list order; errors as `neighbor_list`.

    The kernels count pairs at the cutoff itself, wrap positions and leave the order open; so they are asked for a hair
    more, and the exact rule and the order are applied to what they return.
    """
    ops = require("nvalchemiops.torch.neighbors", "cuda", "the nvalchemi neighbour list")
    lattice = lattices(batch, cutoff)
    filled = batch.take(np.flatnonzero(batch.counts > 0)) if (batch.counts == 0).any() else batch
    if filled.n_atoms == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Found(empty, empty, empty.new_zeros((0, 3)), empty.new_zeros((0, 3), dtype=torch.float64))
    nonempty = batch.counts > 0
    cell = _full_cells(batch, lattice, cutoff)[nonempty]
    positions = torch.from_numpy(np.array(batch.positions, np.float64)).to(device)
    kernel_cell = torch.from_numpy(cell).to(device)
    pbc = torch.from_numpy(np.array(filled.pbc, np.bool_)).to(device)
    ptr = torch.from_numpy(filled.ptr.astype(np.int32)).to(device)
    counts = torch.from_numpy(filled.counts).to(device)
    structure = torch.repeat_interleave(counts)
    method = "batch_cell_list" if filled.n_atoms > ATOMS_FOR_CELL_LIST * filled.n_structures else "batch_naive"
    reach = cutoff * (1 + 1e-9) + 1e-8 + 1e-13 * float(lattice.extent.max(initial=0.0))
    width = _width(batch, lattice, cutoff)
    while True:
        matrix, found, shifts = ops.neighbor_list(
            positions,
            reach,
            cell=kernel_cell,
            pbc=pbc,
            batch_idx=structure.to(torch.int32),
            batch_ptr=ptr,
            max_neighbors=width,
            method=method,
        )
        most = int(found.max())
        if most <= width:
            break
        if most > MAX_NEIGHBORS_PER_ATOM:
            atom = int(torch.nonzero(found > MAX_NEIGHBORS_PER_ATOM)[0])
            raise_graph_error(TOO_DENSE, int(np.searchsorted(batch.ptr, atom, side="right")) - 1, batch, cutoff)
        width = most
    return _sort_edges(matrix, found, shifts, positions, kernel_cell, pbc, structure, cutoff)


def _sort_edges(
    matrix: Tensor,
    found: Tensor,
    shifts: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    structure: Tensor,
    cutoff: float,
) -> Found:
    """Flatten the neighbour matrix, apply the exact rule and sort."""
    used = torch.arange(matrix.shape[1], device=matrix.device) < found[:, None]
    i, slot = torch.nonzero(used, as_tuple=True)
    j = matrix[i, slot].to(torch.int64)
    shift = shifts[i, slot].to(torch.int64)
    periodic_cell = torch.where(pbc[:, :, None], cell, torch.zeros_like(cell))
    kept, vec = exact(positions, periodic_cell, structure, i, j, shift, cutoff)
    i, j, shift = i.index_select(0, kept), j.index_select(0, kept), shift.index_select(0, kept)
    order = list_order(j, i, shift)
    return Found(*(t.index_select(0, order) for t in (j, i, shift, vec)))
