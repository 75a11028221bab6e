"""A batch as a padded neighbour table: the form of a graph that needs no scatter, which exported models take.

Row i lists the neighbours of atom i, W places wide. A place holds the sender j and the integer shift S of an edge with
`vec = pos[j] + S @ cell - pos[i]`, or -1 where it is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.graphs.graph import NeighborList

EMPTY = -1
"""Content of an empty place of the table."""


def table_arrays(neighbors: NeighborList, n_atoms: int, *, reverse: bool = False) -> dict[str, NDArray[Any]]:
    """Return `neighbors [N,W]` int64 and `shifts [N,W,3]` int32 of a list, and `reverse [N,V]` int64 if asked for.

    W and V are at least 1. `reverse[j]` holds the places `i * W + k` of the table whose sender is j; it replaces
    the symmetry that a truncated list lacks.
    """
    row_ptr, sender, receiver = (t.cpu().numpy() for t in (neighbors.row_ptr, neighbors.sender, neighbors.receiver))
    counts = np.diff(row_ptr)
    width = max(int(counts.max(initial=0)), 1)
    place = receiver * width + np.arange(len(sender)) - row_ptr[:-1][receiver]
    table = np.full(n_atoms * width, EMPTY, np.int64)
    table[place] = sender
    shifts = np.zeros((n_atoms * width, 3), np.int32)
    shifts[place] = neighbors.shift.cpu().numpy()
    arrays: dict[str, NDArray[Any]] = {
        "neighbors": table.reshape(n_atoms, width),
        "shifts": shifts.reshape(n_atoms, width, 3),
    }
    if reverse:
        order = np.argsort(sender, kind="stable")
        sent = np.bincount(sender, minlength=n_atoms)
        wide = max(int(sent.max(initial=0)), 1)
        first = np.cumsum(sent) - sent
        back = np.full(n_atoms * wide, EMPTY, np.int64)
        back[sender[order] * wide + np.arange(len(sender)) - first[sender[order]]] = place[order]
        arrays["reverse"] = back.reshape(n_atoms, wide)
    return arrays


class _Senders(torch.autograd.Function):
    """Rows of x [K,N,...] by the table, [K,N*W,...]; the backward gathers by the reverse table, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        return x.index_select(1, neighbors.reshape(-1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (reverse,) = ctx.saved_tensors
        return gather_sent(grad, reverse), None, None


def gather_sent(values: Tensor, reverse: Tensor) -> Tensor:
    """Sum values of table places `[K,N*W,...]` over the places that each atom sends to: `[K,N,...]`."""
    atoms, wide = reverse.shape
    trailing = values.shape[2:]
    used = (reverse >= 0).reshape(1, -1, *([1] * len(trailing)))
    found = values.index_select(1, reverse.clamp(min=0).reshape(-1))
    return torch.where(used, found, 0).view(values.shape[0], atoms, wide, *trailing).sum(2)


@dataclass(frozen=True)
class TableGraph:
    """A batch in table form: N atoms, W places per atom, E = N*W edges of which some are empty.

    Attributes
    ----------
    numbers : [N] int64, atomic numbers; structure : [N] int64, structure of each atom.
    neighbors : [N,W] int64, senders; empty places hold the atom itself, and their basis is zero.
    reverse : [N,V] int64 or None. None means that the list is complete, hence symmetric, and that gradients by geometry
        are those of pairs: an edge and its reverse count as one variable, whose gradient stands on both.
    full : [N,W] bool, which places hold an edge.
    inline : write filters as sums over radial functions instead of matrix products, for compilers that fuse them.
    moments : sum over neighbours before filters (see `atomsieve.models.messages.moments`), for runtimes that do not
        fuse operations.
    paired : where `reverse` is None: `(distance [K,N,W], unit [K,N,W,3])`, the leaves that get the gradients of pairs,
        and the basis and its slope `[N,W,R]`.
    """

    numbers: Tensor
    structure: Tensor
    neighbors: Tensor
    reverse: Tensor | None
    full: Tensor
    inline: bool = False
    paired: PairedEdges | None = None
    moments: bool = False

    def senders(self, x: Tensor) -> Tensor:
        """Return the rows of the senders of all places, `[K,N*W,...]`, of `x [K,N,...]`; its backward is a gather."""
        if self.reverse is None:
            raise ValueError("an encoder that states edges_in_messages_only may use its edges through `message` alone")
        return _Senders.apply(x, self.neighbors, self.reverse)

    def receivers(self, x: Tensor) -> Tensor:
        """Return the rows of the receivers of all places, `[K,N*W,...]`, of `x [K,N,...]`: each atom's W times."""
        places = self.neighbors.shape[1]
        return x.unsqueeze(2).expand(-1, -1, places, *x.shape[2:]).reshape(x.shape[0], -1, *x.shape[2:])

    def sum_edges(self, values: Tensor, start: Tensor | None = None) -> Tensor:
        """Sum `values [K,N*W,...]` over the full places of each atom, onto `start [K,N,...]` (None: zero)."""
        atoms, places = self.neighbors.shape
        trailing = values.shape[2:]
        full = self.full.reshape(1, atoms, places, *([1] * len(trailing)))
        laid = values.reshape(values.shape[0], atoms, places, *trailing)
        total = torch.where(full, laid, 0).sum(2)
        return total if start is None else start + total


@dataclass(frozen=True)
class PairedEdges:
    """Leaves `distance [K,N,W]`, `unit [K,N,W,3]` and constants `basis`, `slope` [N,W,R] of a symmetric table."""

    distance: Tensor
    unit: Tensor
    basis: Tensor
    slope: Tensor
