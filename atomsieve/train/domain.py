"""Fit of the domain at the end of a training: what each head saw, from the structures that it was trained on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.gfm.folder import record_files
from atomsieve.models.ensemble import Ensemble
from atomsieve.train.distributed import Team
from atomsieve.train.split import CALIBRATION, TRAIN
from atomsieve.train.store import Store
from atomsieve.uncertainty.domain import DOMAIN, HeadDomain, domain_bytes
from atomsieve.uncertainty.domain_fit import fit_head


def fit_domain(
    gfm: Path,
    ensemble: Ensemble,
    store: Store,
    part: NDArray[np.int8],
    team: Team,
    progress: AbstractContextManager[Any],
) -> None:
    """Fit the domain of every head of a written gfm/ folder and put it there; the ranks share the heads.

    part : [S] of the catalogue; what was kept for calibration sets the limits. `progress` gives `step(done, total)`.
    """
    catalog = store.catalog

    def fit() -> dict[str, HeadDomain]:
        encoder, found = ensemble.take([0]).float().cpu().eval(), {}
        own_heads = range(team.rank, len(catalog.sources), team.size)
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

    found = {name: domain for fits in team.together(fit) for name, domain in fits.items()}

    def write() -> None:
        if found and team.chief:
            record_files(gfm, {DOMAIN: domain_bytes(found, [h.name for h in ensemble.heads])})

    team.together(write)
