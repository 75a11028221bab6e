"""Base classes of predictors: one with defaults, and a wrapper that forwards everything to another predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.interface import AnyPredictor, Capabilities, Pending
from atomsieve.predict.prediction import Prediction
from atomsieve.structures.batch import StructureBatch

if TYPE_CHECKING:
    import torch

    from atomsieve.predict.interface import Builder

ALL_ELEMENTS = range(1, 119)


class PredictorBase(ABC):
    """Defaults of `AnyPredictor` for a predictor that computes in this process, one batch at a time.

    A subclass sets `heads`, `default_head`, `head`, `ensemble_id` and `cutoff`, and has a call.
    """

    heads: list[str]
    default_head: str
    head: str
    ensemble_id: str
    cutoff: float
    members: int = 1
    kind: str = "deep"
    precision: str = "fp64"
    device: torch.device | str = "cpu"
    backend: str = "native"

    @property
    def capabilities(self) -> Capabilities:
        """All heads, one precision, energies and forces."""
        return Capabilities(choices=tuple(self.heads), precisions=(self.precision,))

    def elements(self, head: str) -> list[int]:
        """Return the atomic numbers of the elements that a head was trained on: all."""
        return list(ALL_ELEMENTS)

    def references(self, head: str) -> NDArray[np.float64]:
        """Return the energy [256] eV of one atom of each element: NaN, as there is none."""
        return np.full(256, np.nan)

    def is_calibrated(self, head: str) -> bool:
        """Return whether the energy uncertainty of a head was calibrated: no."""
        return False

    def note(self, head: str) -> str | None:
        """Return one line that a user of a head must know: None."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return a description as plain data, for logs and manifests."""
        return {
            "ensemble_id": self.ensemble_id,
            "heads": list(self.heads),
            "head": self.head,
            "calibrated": {name: [] for name in self.heads},
            "members": self.members,
            "kind": self.kind,
            "cutoff": self.cutoff,
            "precision": self.precision,
            "device": str(self.device),
            "backend": self.backend,
        }

    def costliest(self) -> AnyPredictor:
        """Return itself."""
        return self

    def lost_endpoints(self) -> dict[str, str]:
        """Return an empty mapping: this process computes."""
        return {}

    def submit(self, batch: StructureBatch, want: Collection[str], head: str | None = None) -> Pending:
        """Return the batch as one that is evaluated when its result is asked for."""
        return DeferredCall(self, batch, want, head)

    @abstractmethod
    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str],
        head: str | None = None,
        *,
        max_structure_atoms: int | None = None,
        build: Builder | None = None,
    ) -> Prediction:
        """See `AnyPredictor`."""


class DeferredCall:
    """A submitted batch that is evaluated in the calling thread when its result is first asked for."""

    def __init__(self, predictor: AnyPredictor, batch: StructureBatch, want: Collection[str], head: str | None) -> None:
        self._predictor, self._given = predictor, (batch, want, head)
        self._result: Prediction | None = None

    def result(self, seconds: float | None = None, /) -> Prediction:
        """Return the prediction; a call cannot be interrupted, so `seconds` is not used."""
        if self._result is None:
            self._result = self._predictor(*self._given)
        return self._result

    def cancel(self) -> None:
        """Do nothing: without a call of `result` the batch is never evaluated."""


class ForwardingPredictor:
    """A predictor that is another one in all that a subclass does not override."""

    def __init__(self, inner: AnyPredictor) -> None:
        self.inner = inner

    @property
    def heads(self) -> list[str]:
        """See `AnyPredictor`."""
        return self.inner.heads

    @property
    def default_head(self) -> str:
        """See `AnyPredictor`."""
        return self.inner.default_head

    @property
    def head(self) -> str:
        """See `AnyPredictor`."""
        return self.inner.head

    @property
    def ensemble_id(self) -> str:
        """See `AnyPredictor`."""
        return self.inner.ensemble_id

    @property
    def members(self) -> int:
        """See `AnyPredictor`."""
        return self.inner.members

    @property
    def kind(self) -> str:
        """See `AnyPredictor`."""
        return self.inner.kind

    @property
    def cutoff(self) -> float:
        """See `AnyPredictor`."""
        return self.inner.cutoff

    @property
    def precision(self) -> str:
        """See `AnyPredictor`."""
        return self.inner.precision

    @property
    def device(self) -> torch.device | str:
        """See `AnyPredictor`."""
        return self.inner.device

    @property
    def backend(self) -> str:
        """See `AnyPredictor`."""
        return self.inner.backend

    @property
    def capabilities(self) -> Capabilities:
        """See `AnyPredictor`."""
        return self.inner.capabilities

    def elements(self, head: str) -> list[int]:
        """See `AnyPredictor`."""
        return self.inner.elements(head)

    def references(self, head: str) -> NDArray[np.float64]:
        """See `AnyPredictor`."""
        return self.inner.references(head)

    def is_calibrated(self, head: str) -> bool:
        """See `AnyPredictor`."""
        return self.inner.is_calibrated(head)

    def note(self, head: str) -> str | None:
        """See `AnyPredictor`."""
        return self.inner.note(head)

    def describe(self) -> dict[str, Any]:
        """See `AnyPredictor`."""
        return self.inner.describe()

    def costliest(self) -> AnyPredictor:
        """See `AnyPredictor`."""
        return self.inner.costliest()

    def lost_endpoints(self) -> dict[str, str]:
        """See `AnyPredictor`."""
        return self.inner.lost_endpoints()

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str],
        head: str | None = None,
        *,
        max_structure_atoms: int | None = None,
        build: Builder | None = None,
    ) -> Prediction:
        """See `AnyPredictor`."""
        return self.inner(batch, want, head, max_structure_atoms=max_structure_atoms, build=build)

    def submit(self, batch: StructureBatch, want: Collection[str], head: str | None = None) -> Pending:
        """See `AnyPredictor`."""
        return self.inner.submit(batch, want, head)
