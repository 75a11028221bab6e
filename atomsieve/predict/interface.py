"""What every predictor offers, wherever it computes: in this process, or where a server is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

from atomsieve.predict.prediction import Prediction
from atomsieve.structures.batch import StructureBatch


@runtime_checkable
class AnyPredictor(Protocol):
    """The interface of `atomsieve.predict.Predictor`, where it is documented."""

    heads: list[str]
    default_head: str
    head: str
    ensemble_id: str
    members: int
    cutoff: float
    precision: str
    device: Any
    backend: str

    @property
    def kind(self) -> str:
        """Of the ensemble: "deep" or "shallow"."""

    @property
    def outputs(self) -> frozenset[str]:
        """What is given beside the energy."""

    def elements(self, head: str) -> list[int]:
        """Return the atomic numbers of the elements that a head was trained on."""

    def calibrated(self, head: str) -> bool:
        """Say whether the energy uncertainty of a head was calibrated."""

    def describe(self) -> dict[str, Any]:
        """Return what it is, as plain data."""

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ...,
        head: str | None = None,
        max_structure_atoms: int | None = None,
        build: Any = ...,
    ) -> Prediction:
        """Evaluate a batch."""
