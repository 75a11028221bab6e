"""The two predictors of a cascade as one: it computes in the cheaper precision and holds the better predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import UsageError
from atomsieve.predict.base import ForwardingPredictor
from atomsieve.predict.interface import AnyPredictor, Capabilities
from atomsieve.screen.cascade.error_bounds import measure_errors, merge_largest
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.options import ScreenOptions, parse_cascade
from atomsieve.structures import StructureBatch

if TYPE_CHECKING:
    from atomsieve.predict import Predictor


class CascadePredictor(ForwardingPredictor):
    """Computes in the cheaper precision; in all else it is the cheaper predictor.

    Attributes
    ----------
    inner : the cheaper predictor. better : the one in the better precision, with all members.
    names : of both in the column `precision`: "bf16", or "bf16/1" with one member.
    vector : structures of the ensemble's test vector by head, on which both are compared.
    """

    def __init__(
        self,
        cheap: AnyPredictor,
        better: AnyPredictor,
        options: ScreenOptions,
        vector: Mapping[str, StructureBatch] | None = None,
    ) -> None:
        super().__init__(cheap)
        self.better, self.vector = better, dict(vector or {})
        members = options.cascade_members
        self.names = (cheap.precision if members is None else f"{cheap.precision}/{members}", better.precision)
        artefact = better.capabilities.artefact
        self._settings = {
            "first": self.names[0],
            "then": self.names[1],
            "safety": options.cascade_safety,
            "top": options.top,
            "by": options.by,
            "descending": options.descending,
            "where": options.where,
            **({} if artefact is None else {"artefact": artefact}),
        }

    @property
    def precision(self) -> str:
        """Name of the cheaper precision, with its members where they are not all."""
        return self.names[0]

    @property
    def capabilities(self) -> Capabilities:
        """Those of the cheaper predictor; structures that do not fit into the GPU are left to the better one."""
        return replace(self.inner.capabilities, precisions=self.names, cascade=self._settings, fallback=False)

    def costliest(self) -> AnyPredictor:
        """Return the better predictor."""
        return self.better.costliest()


def load_cascade(ensemble: str | Path, cheap: Predictor, options: ScreenOptions) -> CascadePredictor:
    """Return the predictor of a cascade whose cheaper one is `cheap`, still with all members."""
    from atomsieve.gfm import read_manifest
    from atomsieve.predict import Predictor

    assert options.cascade is not None
    _, then = parse_cascade(options.cascade, options.cascade_members)
    better = Predictor.load(ensemble, head=cheap.head, precision=then, device=str(cheap.device), backend=cheap.backend)
    members = options.cascade_members
    first = cheap if members is None else take_members(cheap, members)
    vector = read_manifest(ensemble).test_vector.get("heads", {})
    return CascadePredictor(first, better, options, {name: _build_batch(stored) for name, stored in vector.items()})


def take_members(predictor: Predictor, members: int) -> Predictor:
    """Return a predictor with the first members alone.

    Raises
    ------
    UsageError
        if it has not more than so many, or its backend holds them in one artefact.
    """
    if predictor.members == 1:
        raise UsageError(f"cascade-members {members}: the ensemble has one member; leave the option out")
    if not 1 <= members < predictor.members:
        raise UsageError(
            f"cascade-members {members}: the ensemble has {predictor.members}; give 1 to {predictor.members - 1}"
        )
    if predictor.backend != "native":
        raise UsageError(
            f"cascade-members {members}: backend {predictor.backend} evaluates all members at once; use --backend "
            "native"
        )
    return predictor.with_members(members)


def _build_batch(stored: dict[str, Any]) -> StructureBatch:
    """Return the structures of a test vector."""
    counts = len(stored["ptr"]) - 1
    return StructureBatch(
        np.array(stored["ptr"], np.int64),
        np.array(stored["numbers"], np.uint8),
        np.array(stored["positions"], np.float64).reshape(-1, 3),
        np.array(stored["cell"], np.float64).reshape(-1, 3, 3),
        np.array(stored["pbc"], bool).reshape(-1, 3),
        np.arange(counts, dtype=np.int64),
        charge=np.array(stored.get("charge", [0.0] * counts), np.float32),
        spin=np.array(stored.get("spin", [1.0] * counts), np.float32),
    )


def measure_vector_errors(pair: CascadePredictor, runner: Runner) -> dict[str, float]:
    """Return the largest errors of the cheaper predictor on the test vector of the heads in use."""
    found = []
    for head in runner.heads:
        if head in pair.vector:
            batch = pair.vector[head]
            cheap, better = (
                replace(runner, predictor=predictor, heads=[head], forces=False)(batch, 0)[0]
                for predictor in (pair.inner, pair.better)
            )
            found.append(measure_errors(cheap, better))
    return merge_largest(found)
