"""The two predictors of a cascade, as one: it answers in the cheaper precision and knows the better one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import UsageError
from atomsieve.screen.cascade.error_bounds import errors, largest
from atomsieve.structures import StructureBatch

if TYPE_CHECKING:
    from atomsieve.screen.engine.runner import PredictorLike, Runner
    from atomsieve.screen.options import ScreenOptions


class Cascaded:
    """Predicts in the cheaper precision; everything else it is asked is what the cheaper predictor says.

    Attributes
    ----------
    better : the predictor in the better precision, with all members.
    names : of both in the column `precision`: "bf16", or "bf16/1" with one member.
    whole : the cheaper one has all members too, so that its spread means the same.
    vector : structures of the ensemble's test vector by head, on which both are compared.
    cascade : what decides which rows are recomputed, as plain data for run.json.
    """

    def __init__(
        self, cheap: Any, better: PredictorLike, options: ScreenOptions, vector: dict[str, StructureBatch] | None = None
    ) -> None:
        self.cheap, self.better, self.vector = cheap, better, vector or {}
        members = options.cascade_members
        self.whole = members is None
        self.names = (cheap.precision if members is None else f"{cheap.precision}/{members}", better.precision)
        self.cascade = {
            "first": self.names[0],
            "then": self.names[1],
            "safety": options.cascade_safety,
            "top": options.top,
            "by": options.by,
            "descending": options.descending,
            "where": options.where,
            **({"artefact": digest} if (digest := getattr(better, "artefact", None)) else {}),
        }

    @property
    def precision(self) -> str:
        """Name of the cheaper precision."""
        return self.names[0]

    @property
    def precisions(self) -> list[str]:
        """Names for the values of the column `precision`."""
        return list(self.names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "cheap" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.cheap, name)

    def __call__(self, batch: StructureBatch, want: set[str], head: str | None = None) -> Any:
        """Answer in the cheaper precision."""
        return self.cheap(batch, want, head=head)


def cascaded(ensemble: str | Path, cheap: Any, options: ScreenOptions) -> Any:
    """Return the pair of predictors of a run whose cheaper one, with all members, is `cheap`."""
    from atomsieve.gfm import read_manifest
    from atomsieve.predict import Predictor

    assert options.cascade is not None
    then = options.cascade.partition(":")[2]
    better = Predictor.load(ensemble, head=cheap.head, precision=then, device=str(cheap.device), backend=cheap.backend)
    members = options.cascade_members
    if members is not None:
        cheap = with_members(cheap, members)
    vector = read_manifest(ensemble).test_vector.get("heads", {})
    return Cascaded(cheap, better, options, {name: _batch(stored) for name, stored in vector.items()})


def with_members(predictor: Any, members: int) -> Any:
    """Return a predictor with the first members alone.

    Raises
    ------
    UsageError
        if it has not more than so many, or its backend holds them in one artefact.
    """
    from atomsieve.predict.backends.native import NativeBackend

    if predictor.members == 1:
        raise UsageError(f"cascade-members {members}: the ensemble has one member; leave the option out")
    if not 1 <= members < predictor.members:
        raise UsageError(
            f"cascade-members {members}: the ensemble has {predictor.members}; give 1 to {predictor.members - 1}"
        )
    run = predictor.run
    if not isinstance(run, NativeBackend):
        raise UsageError(
            f"cascade-members {members}: backend {run.name} evaluates all members at once; use --backend native"
        )
    model = run.model.take(list(range(members)))
    out = predictor.with_backend(NativeBackend(model, run.precision, predictor.device, run.why))
    out.members = members
    return out


def _batch(stored: dict[str, Any]) -> StructureBatch:
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


def tested(model: Cascaded, runner: Runner) -> dict[str, float]:
    """Return the largest errors of the cheaper predictor on the test vector of the heads in use."""
    from dataclasses import replace

    found = []
    for head in runner.heads:
        if head in model.vector:
            batch = model.vector[head]
            a, b = (
                replace(runner, predictor=p, heads=[head], forces=False)(batch, 0)[0]
                for p in (model.cheap, model.better)
            )
            found.append(errors(a, b))
    return largest(found)
