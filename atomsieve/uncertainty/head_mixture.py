"""The learned mixture of an ensemble's heads: how much each counts for a structure, from its composition alone.

A small network reads how many atoms of each element a structure has and gives every head a weight; weights of a
structure are positive and add up to one (HydraGNN's branch weights). Because they depend on the composition and not on
the positions, forces of the mixture are the same mixture of the forces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.models.config import HeadSpec
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.structures import StructureBatch

AUTO = "auto"
"""Name that stands for the mixture where a head is asked for."""
INPUTS = ("fractions", "counts")


def composition(numbers: NDArray[np.uint8], ptr: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many atoms of each element, 1 to 118, structures have [S,118]."""
    counts = np.diff(ptr)
    code = np.repeat(np.arange(len(counts)) * 256, counts) + numbers
    return np.bincount(code, minlength=256 * len(counts)).reshape(-1, 256)[:, 1 : MAX_NUMBER + 1].astype(np.float64)


@dataclass(frozen=True)
class Mixture:
    """Weights of heads from compositions.

    Attributes
    ----------
    heads : names, H of them, in the order of the weights.
    maps : linear maps of the network, each (weight [outputs,inputs], bias [outputs]) with ReLU between; 118 in, H out.
    inputs : "fractions" (the default: a doubled cell has the same weights) or "counts" (numbers of atoms, as HydraGNN).
    about : anything JSON-able that describes how it was made.
    """

    heads: tuple[str, ...]
    maps: tuple[tuple[NDArray[Any], NDArray[Any]], ...]
    inputs: str = "fractions"
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise unknown("input of a mixture", self.inputs, INPUTS)
        if AUTO in self.heads:
            raise UsageError(f"a head is called {AUTO!r}, which stands for the mixture; rename it to have a mixture")
        width = MAX_NUMBER
        for weight, bias in self.maps:
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise DataError(
                    f"a mixture's maps must follow on each other from {MAX_NUMBER} elements, got weights "
                    f"{weight.shape} and {bias.shape} after width {width}"
                )
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise DataError("a mixture's weights must be finite")
            width = weight.shape[0]
        if not self.maps or width != len(self.heads):
            raise DataError(f"a mixture of {len(self.heads)} heads needs as many outputs, got {width}")

    @property
    def mixed(self) -> list[str]:
        """Names of the heads that can have weight: those that it was fitted to, where that is known."""
        return [name for name in self.heads if name in self.about.get("of_head", self.heads)]

    def logits(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return logits [S,H] of compositions [S,118] in numbers of atoms."""
        x = counts
        if self.inputs == "fractions":
            x = x / np.maximum(x.sum(1, keepdims=True), 1)
        for place, (weight, bias) in enumerate(self.maps):
            x = (x if place == 0 else np.maximum(x, 0)) @ weight.T.astype(np.float64) + bias
        return x

    def __call__(self, batch: StructureBatch, known: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the weight of each head in each structure [S,H].

        known : [H,118], the elements that each head can say something about. A head that lacks an element of a
            structure has no weight in it, and the other mixed heads share the whole; if each of them lacks one, all
            weights are zero. Heads that are not mixed never have weight.
        """
        counts = composition(batch.numbers, batch.ptr)
        known = known & np.isin(self.heads, self.mixed)[:, None]  # no bias is low enough where all others are out
        lacks = (counts @ (~known).T.astype(np.float64)) > 0
        odd = counts.sum(1) < batch.counts  # atoms that are no element
        logits = np.where(lacks | odd[:, None], -np.inf, self.logits(counts))
        top = logits.max(1, keepdims=True)
        weights = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
        total = weights.sum(1, keepdims=True)
        return np.asarray(np.divide(weights, total, out=np.zeros_like(weights), where=total > 0))


def reference_gap(heads: Sequence[HeadSpec]) -> tuple[float, int, str, str]:
    """Return the largest difference, in eV, of two heads' references of one element, the element, and the two heads.

    Levels of theory that count energy from different zeros (all electrons, pseudopotentials, formation energies) show
    as a large difference: mixed energies of different compositions must then not be compared.
    """
    worst = (0.0, 0, "", "")
    for z in range(1, MAX_NUMBER + 1):
        of = sorted((h.references[z], h.name) for h in heads if z in h.references)
        if of and of[-1][0] - of[0][0] > worst[0]:
            worst = (of[-1][0] - of[0][0], z, of[0][1], of[-1][1])
    return worst


def from_hydragnn_mixture(state: Mapping[str, Any], heads: Sequence[str]) -> Mixture:
    """Return the mixture of HydraGNN's branch-weight network; its inputs are numbers of atoms.

    state : its state dict, `net.0.weight` [128,118] and so on, of tensors or arrays. heads : in the order of branches.

    Raises
    ------
    DataError
        for a key that is missing, unexpected or of the wrong shape.
    """
    places = sorted({int(name.split(".")[1]) for name in state if name.startswith("net.") and name.count(".") == 2})
    expected = {f"net.{k}.{part}" for k in places for part in ("weight", "bias")}
    if not places or (odd := sorted(expected ^ {*state})):
        raise DataError(
            f"not the state dict of a branch-weight network: {', '.join(odd[:4]) if places else 'no net.*'}"
        )
    maps = tuple((np.asarray(state[f"net.{k}.weight"]), np.asarray(state[f"net.{k}.bias"])) for k in places)
    return Mixture(tuple(heads), maps, "counts", {"from": "HydraGNN's branch weights"})
