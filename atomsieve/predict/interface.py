"""The interface of predictors, used by screening, calculators, servers and follow-ups.

`AnyPredictor` has the members of every predictor; `Capabilities` states the features that only some have. A caller
reads `predictor.capabilities` and never probes an object by `hasattr`. `atomsieve.predict.base` has base classes with
defaults. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.prediction import Prediction
from atomsieve.structures.batch import StructureBatch

if TYPE_CHECKING:
    import torch

    from atomsieve.graphs import Graph

    Builder = Callable[..., Graph]
    """Makes the graph of a batch; called as `atomsieve.graphs.build_graph` is."""


@dataclass(frozen=True)
class Capabilities:
    """Features of a predictor, and where it computes.

    Attributes
    ----------
    choices : heads that a call may name, with "auto" where heads can be mixed.
    outputs : results of a call other than the energy: of "forces", "stress", "energies",
        "energy_members" and "forces_members".
    precisions : names of the values of the column `precision` of a screening, by code.
    graphs : a call takes a graph builder (`build=`), so that neighbour lists can be kept between calls.
    charge_spin : the ensemble needs total charge and multiplicity of every structure.
    features : number of features that the encoder gives each atom; None where they cannot be asked for.
    budget : atoms and estimated edges of a batch that is fast for it; None takes the default of the device.
    max_atoms : atoms that the backend evaluates at once; None where that is not known.
    asynchronous : `submit` returns before the batch is computed, so several batches may be on their way.
    streams : batches that are computed at the same time on the device.
    fallback : the same ensemble can be loaded on the CPU for a structure that does not fit into a GPU.
    artefact : SHA-256 of the exported artefact that computes; None for the native backend.
    cascade : settings that decide which rows of a screening are recomputed, for run.json; None without a cascade.
    endpoints : URLs of the servers that compute; empty where this process does.
    server : version, threads, budget and limits of the server, which decide the last bits of answers; None without one.
    patience : seconds for which a request to a server is retried without any answer.
    """

    choices: tuple[str, ...]
    precisions: tuple[str, ...]
    outputs: frozenset[str] = frozenset({"forces"})
    graphs: bool = False
    charge_spin: bool = False
    features: int | None = None
    budget: tuple[int, int] | None = None
    max_atoms: int | None = None
    asynchronous: bool = False
    streams: int = 1
    fallback: bool = False
    artefact: str | None = None
    cascade: Mapping[str, Any] | None = field(default=None, hash=False)
    endpoints: tuple[str, ...] = ()
    server: Mapping[str, Any] | None = field(default=None, hash=False)
    patience: float = 0.0


class Pending(Protocol):
    """A batch that was submitted; a `concurrent.futures.Future` of a `Prediction` is one."""

    def result(self, seconds: float | None = None, /) -> Prediction:
        """Wait for the prediction and return it; errors are those of a call.

        Raises
        ------
        TimeoutError
            if it is not there after so many seconds; it may be asked for again.
        """

    def cancel(self) -> object:
        """Drop the batch, unless its computation has begun."""


@runtime_checkable
class AnyPredictor(Protocol):
    """The members of every predictor; `atomsieve.predict.Predictor` documents the call.

    mypy checks it; `isinstance` is for tests alone (`atomsieve.testing`).
    """

    @property
    def heads(self) -> list[str]:
        """Names of all heads."""

    @property
    def default_head(self) -> str:
        """The head that the ensemble's own folder names."""

    @property
    def head(self) -> str:
        """The head that a call uses when it names none."""

    @property
    def ensemble_id(self) -> str:
        """SHA-256 that names the ensemble."""

    @property
    def members(self) -> int:
        """Number K of members."""

    @property
    def kind(self) -> str:
        """One of "deep" and "shallow"."""

    @property
    def cutoff(self) -> float:
        """Cutoff radius of the neighbour lists, Angstrom."""

    @property
    def precision(self) -> str:
        """One of "fp64", "fp32" and "bf16"; of a cascade, the cheaper one with its members."""

    @property
    def device(self) -> torch.device | str:
        """Where it computes; of a served ensemble, the server's."""

    @property
    def backend(self) -> str:
        """Name of the backend in use."""

    @property
    def capabilities(self) -> Capabilities:
        """Features, and where it computes."""

    def elements(self, head: str) -> list[int]:
        """Return the atomic numbers of the elements that a head was trained on."""

    def references(self, head: str) -> NDArray[np.float64]:
        """Return the energy [256] eV of one atom of each element, by atomic number; NaN where the head has none."""

    def is_calibrated(self, head: str) -> bool:
        """Return whether the energy uncertainty of a head was calibrated."""

    def note(self, head: str) -> str | None:
        """Return one line that a user of a head must know, or None."""

    def describe(self) -> dict[str, Any]:
        """Return a description as plain data, for logs and manifests."""

    def costliest(self) -> AnyPredictor:
        """Return the predictor whose batches take the most memory: itself, or the better one of a cascade."""

    def lost_endpoints(self) -> dict[str, str]:
        """Return the endpoints that do not answer now, by URL, and why; empty where this process computes."""

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str],
        head: str | None = None,
        *,
        max_structure_atoms: int | None = None,
        build: Builder | None = None,
    ) -> Prediction:
        """Evaluate a batch; results are in input order.

        want : any of `atomsieve.predict.prediction.PROPERTIES`. head : None takes `head`.
        max_structure_atoms : a larger structure gets the status TOO_LARGE.
        build : makes the graph, where `capabilities.graphs` is set; else it is not used.
        """

    def submit(self, batch: StructureBatch, want: Collection[str], head: str | None = None) -> Pending:
        """Begin to evaluate a batch and return at once where `capabilities.asynchronous` is set; errors as of a call.

        Elsewhere the batch is evaluated when its result is asked for.
        """
