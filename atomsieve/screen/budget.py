"""The budget of a run's batches, and what happens to a structure that alone is too large for the device."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.predict.packing import BUDGETS
from atomsieve.screen import manifest
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.store import Folder
from atomsieve.structures import StructureBatch

log = logging.getLogger(__name__)

PLACES, AT_EACH = 4, 64
"""A sample of the candidates: so many places spread over the input, so many structures at each."""


@dataclass(frozen=True)
class Settled:
    """The budget of a batch, and one line on where it comes from; `automatic` if no option gave it."""

    max_atoms: int
    max_edges: int
    why: str
    automatic: bool = False

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        return {"why": self.why, "automatic": self.automatic}


def settle_budget(
    model: Any,
    reader: Any,
    options: ScreenOptions,
    folder: Folder,
    *,
    head: str,
    want: set[str],
    overwrite: bool,
    share: int,
    loaded: bool,
) -> Settled:
    """Return the budget of a run's batches: as the options say, as an earlier part of the run had it, or by memory.

    model : the predictor. share : processes of this machine, which share its memory. loaded : the predictor computes
        in this process and was loaded for this run; of any other the usual budget is taken.
    """
    usual = options.budget(manifest.device_kind(model), getattr(model, "budget", None))
    if options.max_atoms is not None and options.max_edges is not None:
        return Settled(*usual, "as asked")
    recorded = None if overwrite else _recorded(folder)
    if recorded is not None and options.max_atoms is None and options.max_edges is None:
        return Settled(*recorded, "as in the earlier part of this run", automatic=True)
    if not loaded:
        return Settled(*usual, "usual", automatic=True)
    from atomsieve.predict.memory import budget_of

    model = getattr(model, "better", model)  # of a cascade, the one that takes more
    found = budget_of(model, lambda: sample(reader), BUDGETS[manifest.device_kind(model)], want=want, head=head,
                      share=_sharing(model, share) * getattr(model, "lanes", 1))  # fmt: skip
    atoms, edges = options.max_atoms or found.max_atoms, options.max_edges or found.max_edges
    given = options.max_atoms is not None or options.max_edges is not None
    return Settled(atoms, edges, f"partly as asked; {found.why}" if given else found.why, automatic=not given)


def _recorded(folder: Folder) -> tuple[int, int] | None:
    """Return the budget that an earlier part of this run found for itself, None where there is none."""
    if not folder.run.is_file():
        return None
    found = manifest.read(folder)
    if not found.get("budget", {}).get("automatic"):
        return None
    return int(found["batches"]["max_atoms"]), int(found["batches"]["max_edges"])


def _sharing(model: Any, processes: int) -> int:
    """Return how many processes share the memory of one device."""
    if manifest.device_kind(model) != "cuda":
        return processes
    import torch

    return -(-processes // max(torch.cuda.device_count(), 1))


def sample(reader: Any) -> StructureBatch:
    """Return a few structures from all over the input."""
    from atomsieve.screen.reading import CONDITIONS

    n = len(reader)
    if n <= PLACES * AT_EACH:
        return reader.read(0, n, CONDITIONS)  # type: ignore[no-any-return]
    starts = np.linspace(0, n - AT_EACH, PLACES).astype(int).tolist()
    return StructureBatch.concatenate([reader.read(s, s + AT_EACH, CONDITIONS) for s in starts])


@dataclass
class OnCpu:
    """Evaluates on the CPU what does not fit into a GPU, with the same ensemble in the same precision.

    The last bits differ from those of a GPU, so what was evaluated here is counted.

    Attributes
    ----------
    folder : the ensemble. computed : structures that were evaluated here, once for each head.
    """

    folder: Path
    computed: int = 0
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def twin(self, predictor: Any) -> Any:
        """Return the same predictor on the CPU, loaded when it is first needed; None where there is no such thing."""
        from atomsieve.predict import Predictor

        predictor = getattr(predictor, "_predictor", predictor)  # of lanes, the one that computes
        if type(predictor) is not Predictor or manifest.device_kind(predictor) == "cpu":
            return None
        if predictor.precision not in self._loaded:
            log.warning("a structure is too large for %s: the ensemble is loaded on the CPU too", predictor.device)
            self._loaded[predictor.precision] = Predictor.load(self.folder, precision=predictor.precision)
        found = self._loaded[predictor.precision]
        return found if found.ensemble_id == predictor.ensemble_id else None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "computed": 0, "_loaded": {}}
