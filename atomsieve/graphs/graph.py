"""Graph: the edge-sorted graph of a batch of structures, as tensors on one device.

Encoders are written against `EdgeGraph`; its two forms are `Graph` and `atomsieve.graphs.table.TableGraph`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class NeighborList:
    """Directed edges of a batch, sorted by receiver; both directions of a pair are listed.

    Attributes
    ----------
    sender, receiver : [E] int64, atom indices in the batch; edge e runs from sender j to receiver i.
    shift : [E,3] int32, integer cell translations: `vec = pos[j] + shift @ cell - pos[i]`.
    row_ptr : [N+1] int64; edges received by atom i are `row_ptr[i]:row_ptr[i+1]`.
    cutoff : Angstrom; an edge is listed if its length is below it.
    complete : no edge within the cutoff was dropped (`max_neighbors` did not bite). A complete list is symmetric: each
        edge has its reverse.
    """

    sender: Tensor
    receiver: Tensor
    shift: Tensor
    row_ptr: Tensor
    cutoff: float
    complete: bool

    @property
    def symmetric(self) -> bool:
        """True if every edge is sure to have its reverse, as the symmetric analytic backward needs."""
        return self.complete

    @property
    def n_edges(self) -> int:
        """Number of directed edges E."""
        return int(self.sender.shape[0])

    def to(self, device: torch.device | str) -> NeighborList:
        """Return the list on a device."""
        sender, receiver = self.sender.to(device), self.receiver.to(device)
        shift, row_ptr = self.shift.to(device), self.row_ptr.to(device)
        return NeighborList(sender, receiver, shift, row_ptr, self.cutoff, self.complete)


class EdgeGraph(Protocol):
    """A graph as an encoder uses it: N atoms, E edges, each from a sender to a receiver.

    Attributes
    ----------
    numbers : [N] int64, atomic numbers.
    structure : [N] int64, structure of each atom.
    """

    @property
    def numbers(self) -> Tensor:
        """Atomic numbers [N] int64."""

    @property
    def structure(self) -> Tensor:
        """Structure of each atom [N] int64."""

    def senders(self, x: Tensor) -> Tensor:
        """Return the rows of the senders of all edges, `[K,E,...]`, of `x [K,N,...]`."""

    def receivers(self, x: Tensor) -> Tensor:
        """Return the rows of the receivers of all edges, `[K,E,...]`, of `x [K,N,...]`."""

    def sum_edges(self, values: Tensor, start: Tensor | None = None) -> Tensor:
        """Sum `values [K,E,...]` over the edges that each atom receives, onto `start [K,N,...]` (None: zero)."""


@dataclass(frozen=True)
class Graph:
    """A batch in the form of edge lists: S structures, N atoms, E edges sorted by receiver, all on one device.

    Attributes
    ----------
    numbers : [N] int64, atomic numbers.
    ptr : [S+1] int64, atoms of structure s are `ptr[s]:ptr[s+1]`.
    structure : [N] int64, structure of each atom.
    vec : [E,3] Angstrom, `pos[sender] + shift @ cell - pos[receiver]`.
    neighbors : the neighbour list.
    """

    numbers: Tensor
    ptr: Tensor
    structure: Tensor
    vec: Tensor
    neighbors: NeighborList

    @property
    def n_structures(self) -> int:
        """Number of structures S."""
        return int(self.ptr.shape[0]) - 1

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return int(self.numbers.shape[0])

    @property
    def n_edges(self) -> int:
        """Number of directed edges E."""
        return self.neighbors.n_edges

    def senders(self, x: Tensor) -> Tensor:
        """Return the rows of the senders of all edges, `[K,E,...]`, of `x [K,N,...]`."""
        return x.index_select(1, self.neighbors.sender)

    def receivers(self, x: Tensor) -> Tensor:
        """Return the rows of the receivers of all edges, `[K,E,...]`, of `x [K,N,...]`."""
        return x.index_select(1, self.neighbors.receiver)

    def sum_edges(self, values: Tensor, start: Tensor | None = None) -> Tensor:
        """Sum `values [K,E,...]` over the edges that each atom receives, onto `start [K,N,...]` (None: zero)."""
        if start is None:
            start = values.new_zeros(values.shape[0], self.n_atoms, *values.shape[2:])
        return start.index_add(1, self.neighbors.receiver, values)

    def to(self, device: torch.device | str) -> Graph:
        """Return the graph on a device; the same object if it is there already."""
        where = torch.device(device)
        if self.vec.device == where:
            return self
        return Graph(
            self.numbers.to(where),
            self.ptr.to(where),
            self.structure.to(where),
            self.vec.to(where),
            self.neighbors.to(where),
        )
