"""Neighbours in plain torch operations: any device, no loop over structures, memory bounded by chunks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atomsieve.graphs.lattice import lattices
from atomsieve.graphs.limits import MAX_EDGES, MAX_NEIGHBORS_PER_ATOM, TOO_DENSE, TOO_MANY_EDGES, raise_graph_error
from atomsieve.structures.batch import StructureBatch

CHUNK = {"cpu": 2**19, "cuda": 2**23}
"""Candidate edges looked at together: about 200 bytes each at the peak."""


class Found(NamedTuple):
    """Edges in list order: sender [E], receiver [E], shift [E,3] int64, vec [E,3] float64."""

    sender: Tensor
    receiver: Tensor
    shift: Tensor
    vec: Tensor


class _Geometry(NamedTuple):
    """A batch on the device; q [N,3] are positions in the frame of the lattice, relative to the first atom."""

    positions: Tensor
    q: Tensor
    structure: Tensor
    first: Tensor
    size: Tensor
    cell: Tensor
    to_cell: Tensor
    tri: Tensor
    inverse: Tensor
    reach: Tensor


def _expand(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """List the integers low[p]..high[p] of every p: return p of each and its value (as float64)."""
    counts = (high - low + 1).clamp(min=0).to(torch.int64)
    source = torch.repeat_interleave(counts)
    start = torch.cumsum(counts, 0) - counts
    offset = torch.arange(len(source), device=low.device) - start.index_select(0, source)
    return source, low.index_select(0, source) + offset


def _candidates(g: _Geometry, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Return for pairs (i, j) the index of the pair and the shift [.,3] of every image that may be within the cutoff.

    Planes, lines in a plane, points on a line: each step covers the part of its range that the sphere cuts out.
    """
    s = g.structure.index_select(0, i)
    d = g.q.index_select(0, j) - g.q.index_select(0, i)
    inverse, tri, reach = (t.index_select(0, s) for t in (g.inverse, g.tri, g.reach))
    pair = torch.arange(len(i), device=i.device)
    left = reach * reach
    steps: list[Tensor] = []
    for k in range(3):
        radius = left.sqrt()
        at, step = d[:, k], inverse[:, k]
        source, value = _expand(torch.ceil((-radius - at) * step), torch.floor((radius - at) * step))
        d = d.index_select(0, source) + value[:, None] * tri[:, k].index_select(0, source)
        left = left.index_select(0, source) - d[:, k] * d[:, k]
        kept = torch.nonzero(left >= 0).squeeze(1)
        source = source.index_select(0, kept)
        d, left, value = d.index_select(0, kept), left.index_select(0, kept), value.index_select(0, kept)
        pair, inverse, tri = (t.index_select(0, source) for t in (pair, inverse, tri))
        steps = [*(t.index_select(0, source) for t in steps), value]
    return pair, torch.stack(steps, 1).to(torch.int64)


def exact(
    positions: Tensor, cell: Tensor, structure: Tensor, i: Tensor, j: Tensor, shift: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Return which candidates are edges, as indices, and their vec [.,3].

    `vec` of an edge and of its reverse are exact negatives of each other, so that both or neither pass.
    """
    h = cell.index_select(0, structure.index_select(0, i))
    n = shift.to(torch.float64)
    move = n[:, 0:1] * h[:, 0] + n[:, 1:2] * h[:, 1] + n[:, 2:3] * h[:, 2]
    vec = (positions.index_select(0, j) - positions.index_select(0, i)) + move
    squared = vec * vec
    near = squared[:, 0] + squared[:, 1] + squared[:, 2] < cutoff * cutoff
    kept = torch.nonzero(near & ((i != j) | (shift != 0).any(1))).squeeze(1)
    return kept, vec.index_select(0, kept)


def list_order(sender: Tensor, receiver: Tensor, shift: Tensor) -> Tensor:
    """Return the permutation [E] that sorts edges by receiver, sender, shift."""
    order = torch.argsort(shift[:, 2], stable=True)
    for key in (shift[:, 1], shift[:, 0], sender, receiver):
        order = order.index_select(0, torch.argsort(key.index_select(0, order), stable=True))
    return order


def _geometry(batch: StructureBatch, cutoff: float, device: torch.device) -> tuple[_Geometry, np.ndarray, np.ndarray]:
    """Return the batch on the device, the candidates per atom row [N] (a bound), and which structures need sorting."""
    lattice = lattices(batch, cutoff)
    scale = np.maximum(lattice.extent, np.linalg.norm(lattice.basis, axis=2).max(1, initial=0.0))
    reach = cutoff + 1e-8 + 1e-13 * scale
    positions = batch.positions.astype(np.float64, copy=False)
    structure = batch.structure_of_atom
    origin = positions[batch.ptr[:-1][structure]] if batch.n_atoms else positions
    q = np.einsum("nc,nkc->nk", positions - origin, lattice.frame[structure])
    images = (2 * reach[:, None] * lattice.inverse_height + 1).prod(1)
    cell = np.where(batch.pbc[:, :, None].astype(bool), batch.cell, 0.0)
    arrays = (
        positions,
        q,
        structure,
        batch.ptr[:-1],
        batch.counts,
        cell,
        lattice.to_cell,
        lattice.tri,
        lattice.inverse_height,
        reach,
    )
    moved = (torch.from_numpy(np.array(a)).to(device) for a in arrays)
    return _Geometry(*moved), (images * batch.counts)[structure], ~lattice.natural


def check_counts(rows: Tensor, atom: int, batch: StructureBatch, cutoff: float) -> None:
    """Raise DataError if a receiver (`rows [E]`, counted from `atom`) has more than `MAX_NEIGHBORS_PER_ATOM` edges."""
    over = torch.nonzero(torch.bincount(rows) > MAX_NEIGHBORS_PER_ATOM)
    if len(over):
        raise_graph_error(
            TOO_DENSE, int(np.searchsorted(batch.ptr, atom + int(over[0]), side="right")) - 1, batch, cutoff
        )


def torch_edges(batch: StructureBatch, cutoff: float, device: torch.device, chunk: int | None = None) -> Found:
    """Return the edges of a batch; errors as `neighbor_list`. `chunk` bounds the candidates looked at together."""
    g, work, unsorted = _geometry(batch, cutoff, device)
    size = chunk or CHUNK.get(device.type, CHUNK["cpu"])
    total = np.cumsum(work)
    atom, n_edges = 0, 0
    parts: list[Found] = []
    while atom < batch.n_atoms:
        done = total[atom - 1] if atom else 0.0
        stop = max(atom + 1, int(np.searchsorted(total, done + size, side="right")))
        rows = torch.arange(atom, stop, device=device)
        structures = g.structure[atom:stop]
        low = g.first.index_select(0, structures).to(torch.float64)
        row, j = _expand(low, low + g.size.index_select(0, structures) - 1)
        i, j = rows.index_select(0, row), j.to(torch.int64)
        pair, steps = _candidates(g, i, j)
        i, j = i.index_select(0, pair), j.index_select(0, pair)
        turn = g.to_cell.index_select(0, g.structure.index_select(0, i))
        shift = (steps[:, :, None] * turn).sum(1)
        kept, vec = exact(g.positions, g.cell, g.structure, i, j, shift, cutoff)
        found = Found(j.index_select(0, kept), i.index_select(0, kept), shift.index_select(0, kept), vec)
        touched = slice(int(np.searchsorted(batch.ptr, atom, side="right")) - 1, int(np.searchsorted(batch.ptr, stop)))
        if unsorted[touched].any():
            order = list_order(found.sender, found.receiver, found.shift)
            found = Found(*(t.index_select(0, order) for t in found))
        check_counts(found.receiver - atom, atom, batch, cutoff)
        parts.append(found)
        n_edges += len(kept)
        if n_edges > MAX_EDGES:
            raise_graph_error(TOO_MANY_EDGES, -1, batch, cutoff)
        atom = stop
    if not parts:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Found(empty, empty, empty.new_zeros((0, 3)), empty.new_zeros((0, 3), dtype=torch.float64))
    return parts[0] if len(parts) == 1 else Found(*(torch.cat(t) for t in zip(*parts, strict=True)))


def row_pointer(receiver: Tensor, n_atoms: int) -> Tensor:
    """Return row_ptr [N+1] int64 of edges sorted by receiver."""
    counts = torch.bincount(receiver, minlength=n_atoms)
    return torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])


def keep_nearest(found: Found, row_ptr: Tensor, keep: int) -> tuple[Found, Tensor, bool]:
    """Keep the `keep` shortest edges of each receiver; lengths equal within 1e-8 Angstrom go by list order.

    Returns the edges, their row_ptr, and whether all were kept.
    """
    counts = row_ptr[1:] - row_ptr[:-1]
    if len(counts) == 0 or int(counts.max()) <= keep:
        return found, row_ptr, True
    squared = found.vec * found.vec
    length = torch.round(1e8 * (squared[:, 0] + squared[:, 1] + squared[:, 2]).sqrt())
    order = torch.argsort(length, stable=True)
    order = order.index_select(0, torch.argsort(found.receiver.index_select(0, order), stable=True))
    rank = torch.arange(len(order), device=order.device) - row_ptr.index_select(0, found.receiver)
    kept = order.index_select(0, torch.nonzero(rank < keep).squeeze(1)).sort().values
    ends = torch.cumsum(counts.clamp(max=keep), 0)
    return Found(*(t.index_select(0, kept) for t in found)), torch.cat([ends.new_zeros(1), ends]), False
