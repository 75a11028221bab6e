"""Calibration at the end of a training, on the part that was kept for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.train.config import TrainConfig
from atomsieve.train.distributed import Team
from atomsieve.train.store import Store
from atomsieve.uncertainty.calibration import DataIdentity, Residuals

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.predict.predictor import Predictor

MOST = 20_000
"""Structures of a head that are used at most: the standard error of a coverage of 90 % is then 0.2 %."""
BATCH = 500


def calibrate(
    gfm: Path,
    config: TrainConfig,
    store: Store,
    rows: NDArray[np.int64],
    digests: list[str],
    team: Team,
    console: Console | None,
) -> None:
    """Fit the calibration of a written gfm/ folder to the structures `rows` of the catalogue, and put it there.

    The ranks share the predictions; the first one fits. What is fitted is what `atomsieve calibrate` would fit.
    digests : identity of each data file.
    """
    # The one room above that is called from here: a calibration holds for what the Predictor gives, and nothing else.
    from atomsieve.evaluation.calibrate import make_calibration, record_calibration
    from atomsieve.predict.predictor import Predictor

    if not len(rows) or config.ensemble.members < 2:
        _say(
            console,
            "every head is uncalibrated: "
            + (
                "no structures were kept for calibration (split.calibration); later: atomsieve calibrate"
                if config.ensemble.members > 1
                else "one member has no spread"
            ),
        )
        return
    catalog, device = store.catalog, team.device
    name = f"cuda:{device.index}" if device.type == "cuda" and device.index is not None else device.type
    predictor = Predictor.load(gfm, device=name)
    residuals = {}
    for head, source in enumerate(catalog.sources):
        own = rows[catalog.head[rows] == head]
        if len(own):
            own = np.sort(np.random.default_rng([config.split.seed, 5]).permutation(own)[:MOST])
            residuals[source] = _residuals(predictor, store, own, source, team)
    if team.chief:
        used = np.bincount(catalog.file[rows], minlength=len(digests))
        data = [
            DataIdentity(name=item.path.name, sha256=digest, structures=int(n), part="calibration")
            for item, digest, n in zip(config.data, digests, used, strict=True)
            if n
        ]
        calibration = make_calibration(predictor, residuals, data)
        record_calibration(gfm, calibration)
        lacking = [s for s in catalog.sources if s not in calibration.heads]
        if lacking:
            _say(console, f"uncalibrated, with too few structures kept for it: {', '.join(lacking)}")
    team.barrier()


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(f"  {text}", highlight=False, soft_wrap=True)


def _residuals(predictor: Predictor, store: Store, rows: NDArray[np.int64], head: str, team: Team) -> Residuals:
    """Return errors and spreads of the structures `rows`, all of one head, predicted by all ranks."""
    from atomsieve.evaluation.residuals import atoms_apart, join_rows, predict_rows

    every = atoms_apart(int(store.catalog.n_atoms[rows].sum()))
    shares = np.array_split(np.arange(len(rows)), team.size)
    own = shares[team.rank]
    parts = [
        predict_rows(predictor, store.fetch(rows[k]), head, k, every)
        for k in (own[a : a + BATCH] for a in range(0, len(own), BATCH))
    ]
    if parts:
        found = join_rows(parts).residuals()
        arrays = [getattr(found, name) for name in Residuals.__dataclass_fields__]
        arrays[-1] = own[found.structure]
    else:
        arrays = [np.zeros((0, 3)) if name == "force_error" else np.zeros(0) for name in Residuals.__dataclass_fields__]
    joined = [_joined(np.asarray(a, np.float64), team) for a in arrays]
    integers = [joined[k].astype(np.int64) for k in (2, 3, 6)]
    return Residuals(joined[0], joined[1], integers[0], integers[1], joined[4], joined[5], integers[2])


def _joined(own: NDArray[np.float64], team: Team) -> NDArray[np.float64]:
    """Return the arrays of all ranks, one after another, on every rank."""
    if team.size == 1:
        return own
    lengths = torch.zeros(team.size, dtype=torch.float64, device=team.device)
    lengths[team.rank] = len(own)
    ends = np.cumsum(team.sum_(lengths).cpu().numpy()).astype(int)
    total = torch.zeros(ends[-1], *own.shape[1:], dtype=torch.float64, device=team.device)
    total[ends[team.rank] - len(own) : ends[team.rank]] = torch.from_numpy(own)
    return team.sum_(total).cpu().numpy()
