"""Fit of the domain at the end of a training: what each head saw, from the structures that it was trained on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.models.domain import DOMAIN, domain_bytes
from atomsieve.models.domain_fit import fit_head
from atomsieve.models.ensemble import Ensemble
from atomsieve.models.folder import record_files
from atomsieve.train.distributed import Team
from atomsieve.train.split import CALIBRATION, TRAIN
from atomsieve.train.store import Store


def fit_domain(
    gfm: Path,
    ensemble: Ensemble,
    store: Store,
    part: NDArray[np.int8],
    team: Team,
    progress: AbstractContextManager[Any],
) -> None:
    """Fit the domain of every head of a written gfm/ folder and put it there; the first rank does it.

    part : [S] of the catalogue; what was kept for calibration sets the limits. `progress` gives `step(done, total)`.
    """
    if team.chief:
        encoder = ensemble.take([0]).float().cpu().eval()
        catalog, found = store.catalog, {}
        with progress as step:
            for k, name in enumerate(catalog.sources):
                own = catalog.head == k
                rows, held = (np.flatnonzero(own & (part == which)) for which in (TRAIN, CALIBRATION))
                domain = fit_head(encoder, store.fetch, rows, held)
                if domain is not None:
                    found[name] = domain
                if step is not None:
                    step(k + 1, len(catalog.sources))
        if found:
            record_files(gfm, {DOMAIN: domain_bytes(found, [h.name for h in ensemble.heads])})
    team.barrier()
