"""Fits to the finished ensemble: the domain of each head and the calibration, on the parts kept for them.

The ranks share the work. `atomsieve calibrate` fits the same calibration to the same structures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.baselines import HeadCompositions, fit_compositions
from atomsieve.evaluation.calibrate import make_calibration
from atomsieve.evaluation.residuals import HeadRows, choose_atom_stride, join_rows, predict_rows
from atomsieve.models import Ensemble
from atomsieve.predict.predictor import Predictor
from atomsieve.train.config import TrainConfig
from atomsieve.train.data.split import CALIBRATION, TRAIN
from atomsieve.train.data.store import Store
from atomsieve.train.distributed import ProcessGroup
from atomsieve.uncertainty.calibration import Calibration, DataIdentity
from atomsieve.uncertainty.domain import HeadDomain
from atomsieve.uncertainty.domain_fit import fit_head

MOST = 20_000
"""Structures of a head that calibrate it at most: the standard error of a coverage of 90 % is then 0.2 %."""
MOST_COMPARED = 100_000
"""Structures of a head behind its nearest-composition predictor at most."""
BATCH = 500


def fit_domains(
    ensemble: Ensemble,
    store: Store,
    part: NDArray[np.int8],
    group: ProcessGroup,
    progress: AbstractContextManager[Any],
) -> dict[str, HeadDomain]:
    """Return the domain of every head with enough structures, by name, on every rank; the ranks share the heads.

    part : [S] of the catalogue; the structures kept for calibration set the limits. `progress` gives
        `step(done, total)`.
    """
    catalog = store.catalog

    def fit() -> dict[str, HeadDomain]:
        encoder, found = ensemble.take([0]).float().cpu().eval(), {}
        own_heads = range(group.rank, len(catalog.sources), group.size)
        with progress as step:
            for done, k in enumerate(own_heads):
                own = catalog.head == k
                rows, held = (np.flatnonzero(own & (part == which)) for which in (TRAIN, CALIBRATION))
                domain = fit_head(encoder, store.fetch, rows, held)
                if domain is not None:
                    found[catalog.sources[k]] = domain
                if step is not None:
                    step(done + 1, len(own_heads))
        return found

    return {name: domain for fits in group.run_and_gather(fit) for name, domain in fits.items()}


def fit_head_compositions(
    store: Store, residual: NDArray[np.float64], part: NDArray[np.int8]
) -> dict[str, HeadCompositions]:
    """Return the training compositions of every head by name, for its nearest-composition predictor.

    residual : [S] eV of the catalogue, energies less references. part : [S]. Of a head with many training structures,
        evenly spaced ones are taken.
    """
    catalog, found = store.catalog, {}
    for head, name in enumerate(catalog.sources):
        rows = np.flatnonzero((catalog.head == head) & (part == TRAIN) & np.isfinite(residual))
        rows = rows[:: max(1, -(-len(rows) // MOST_COMPARED))]
        fitted = fit_compositions(catalog.composition[rows].astype(np.int64), residual[rows])
        if fitted is not None:
            found[name] = fitted
    return found


def predict_part(
    predictor: Predictor,
    store: Store,
    rows: NDArray[np.int64],
    group: ProcessGroup,
    *,
    most: int,
    seed: int,
    compositions: Mapping[str, HeadCompositions] | None = None,
) -> dict[str, HeadRows]:
    """Predict structures of the catalogue with the head of their source; return them by head, on every rank.

    rows : [S] of the catalogue. Of a head with more than `most` structures, so many are drawn by `seed`. Positions
        count the structures of a head. compositions : of the training part of each head.
    """
    catalog, found = store.catalog, {}
    for head, source in enumerate(catalog.sources):
        own = rows[catalog.head[rows] == head]
        if len(own):
            own = np.sort(np.random.default_rng([seed, 5]).permutation(own)[:most])
            found[source] = _predict_head(predictor, store, own, source, group, (compositions or {}).get(source))
    return found


def _predict_head(
    predictor: Predictor,
    store: Store,
    rows: NDArray[np.int64],
    head: str,
    group: ProcessGroup,
    compositions: HeadCompositions | None,
) -> HeadRows:
    """Predict the structures `rows`, all of one head, divided over the ranks in order."""
    every = choose_atom_stride(int(store.catalog.n_atoms[rows].sum()))
    own = np.array_split(np.arange(len(rows)), group.size)[group.rank]

    def predict() -> list[HeadRows]:
        batches = (own[start : start + BATCH] for start in range(0, len(own), BATCH))
        return [predict_rows(predictor, store.fetch(rows[k]), head, k, every, compositions) for k in batches]

    return join_rows([part for parts in group.run_and_gather(predict) for part in parts])


def fit_calibration(
    predictor: Predictor,
    config: TrainConfig,
    store: Store,
    rows: NDArray[np.int64],
    digests: Sequence[str],
    group: ProcessGroup,
) -> Calibration:
    """Return the calibration fitted to the structures `rows` of the catalogue, on every rank.

    digests : identity of each data file.
    """
    residuals = {
        name: found.residuals()
        for name, found in predict_part(predictor, store, rows, group, most=MOST, seed=config.split.seed).items()
    }
    used = np.bincount(store.catalog.file[rows], minlength=len(digests))
    data = [
        DataIdentity(name=item.path.name, sha256=digest, structures=int(n), part="calibration")
        for item, digest, n in zip(config.data, digests, used, strict=True)
        if n
    ]
    return make_calibration(predictor, residuals, data)
