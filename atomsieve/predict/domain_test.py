"""The test whether a structure lies in the training domain of a head; an ensemble may agree on nonsense outside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.gfm import EnsembleManifest
from atomsieve.graphs import Graph, shortest_edges
from atomsieve.predict.domain_flags import Outside
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.domain import HeadDomain, find_pair_limits
from atomsieve.uncertainty.matter import count_neighbours
from atomsieve.uncertainty.radii import BOND, SIZE, SUMS


class DomainTest:
    """Tests structures against the training domains of an ensemble's heads.

    Parameters
    ----------
    manifest : of the ensemble. domains : fitted domain of each head; a head without one is tested by its
        shortest contact alone.
    """

    def __init__(self, manifest: EnsembleManifest, domains: Mapping[str, HeadDomain] | None = None) -> None:
        self._heads = [(domains or {}).get(h.name) for h in manifest.heads]
        self._names = [h.name for h in manifest.heads]
        self._closest = [h.statistics.get("shortest_distance", 0.0) for h in manifest.heads]
        self._bonds = torch.from_numpy(BOND * SUMS).float().ravel()
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def needs_features(self, head: int | NDArray[np.float64]) -> bool:
        """Return whether the test of a head, or of the heaviest of weights [S,H], reads features of the encoder."""
        if isinstance(head, np.ndarray):
            return any(self._heads[k] is not None for k in np.unique(head.argmax(1)))
        return self._heads[head] is not None

    def describe(self) -> dict[str, str]:
        """Return the kind of test of each head."""
        full, more = "elements, bonded pairs, contacts, feature distance", ", density, coordination"
        return {
            name: "elements, shortest contact" if domain is None else full + (more if domain.matter is not None else "")
            for name, domain in zip(self._names, self._heads, strict=True)
        }

    def __call__(
        self,
        batch: StructureBatch,
        graph: Graph,
        head: int | NDArray[np.float64],
        features: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return the reasons [S] against each structure (`Outside`), and its distance [S] in feature space (or NaN).

        head : its index, or the weight of each head in each structure [S,H]: the heaviest head's test then applies.
        """
        if isinstance(head, np.ndarray):
            return self._heaviest(batch, graph, head.argmax(1), features)
        outside, distance = np.zeros(len(batch), np.uint8), np.full(len(batch), np.nan)
        domain = self._heads[head]
        if domain is None:
            outside[shortest_edges(graph) <= self._closest[head] - 1e-3] |= np.uint8(Outside.SHORT_CONTACT)
            return outside, distance
        unseen, short, edges = self._pairs(graph, head, domain)
        outside[unseen] |= np.uint8(Outside.UNSEEN_PAIR)
        outside[short] |= np.uint8(Outside.SHORT_CONTACT)
        if edges is not None and domain.matter is not None:
            dense, bound = domain.matter.judge(batch, *count_neighbours(graph, *edges), graph.neighbors.cutoff)
            outside[dense] |= np.uint8(Outside.UNUSUAL_DENSITY)
            outside[bound] |= np.uint8(Outside.UNUSUAL_COORDINATION)
        if features is not None:
            distance = domain.distances(batch.numbers, features, batch.ptr)
            outside[~(distance <= 1.0)] |= np.uint8(Outside.FAR_FROM_TRAINING)
        return outside, distance

    def _heaviest(
        self, batch: StructureBatch, graph: Graph, judge: NDArray[np.int64], features: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Test each structure against the domain of head `judge [S]`."""
        outside, distance = np.zeros(len(batch), np.uint8), np.full(len(batch), np.nan)
        for head in np.unique(judge).tolist():
            own = judge == head
            reasons, far = self(batch, graph, head, features)
            outside[own], distance[own] = reasons[own], far[own]
        return outside, distance

    def _pairs(
        self, graph: Graph, head: int, domain: HeadDomain
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[Tensor, Tensor] | None]:
        """Return masks [S]: structures with a bond not seen in training, and with a contact shorter than any seen.

        And the lengths of the edges [E] and which are bonds, where the domain has ranges of density and coordination.
        """
        key = (head, graph.vec.device)
        if key not in self._tables:
            bonds, contacts = limits(domain)
            self._tables[key] = bonds.to(graph.vec.device), contacts.to(graph.vec.device)
        bonds, contacts = self._tables[key]
        sender, receiver = graph.neighbors.sender, graph.neighbors.receiver
        code = graph.numbers[sender] * SIZE + graph.numbers[receiver]
        length = torch.linalg.vector_norm(graph.vec, dim=1).float()
        home = graph.structure
        out = []
        for limit in (bonds, contacts):
            marked = torch.zeros(graph.n_structures, dtype=torch.bool, device=length.device)
            marked[home[receiver[length < limit[code]]]] = True
            out.append(marked.cpu().numpy())
        edges = None if domain.matter is None else (length, length < self._bonds.to(length.device)[code])
        return out[0], out[1], edges


def limits(domain: HeadDomain) -> tuple[Tensor, Tensor]:
    """Return the distances [119*119] Angstrom below which a pair is an unseen bond, or a short contact."""
    bonds, closest = find_pair_limits(domain)
    return torch.from_numpy(bonds.ravel()).float(), torch.from_numpy(domain.closer * closest.ravel()).float()
