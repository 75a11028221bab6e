"""The budget of a run's batches, and what happens to a structure that alone is too large for the device."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.predict.packing import usual_budget
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import run_record as manifest
from atomsieve.screen.results.files import Folder
from atomsieve.structures import StructureBatch

log = logging.getLogger(__name__)

PLACES, AT_EACH = 4, 64
"""A sample of the candidates: so many places spread over the input, so many structures at each."""


@dataclass(frozen=True)
class Settled:
    """The budget of a batch, one line on where it comes from, and which of the two numbers no option gave."""

    max_atoms: int
    max_edges: int
    why: str
    automatic: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of it: nothing that may differ between equal runs, as free memory does."""
        return {"automatic": list(self.automatic)}


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

    model : the predictor. share : processes that share the device, or the machine if that is a CPU. loaded : the
        predictor computes in this process and was loaded for this run; of any other the usual budget is taken.
    """
    lanes = getattr(model, "lanes", 1)
    model = getattr(model, "better", model)  # of a cascade, the one that takes more
    usual = options.budget(usual_budget(model))
    given = {"max_atoms": options.max_atoms, "max_edges": options.max_edges}
    automatic = tuple(name for name, value in given.items() if value is None)
    if not automatic:
        return Settled(*usual, "as asked")
    recorded = {} if overwrite else _recorded(folder)
    if set(automatic) <= set(recorded):
        atoms, edges = (recorded[name] if value is None else value for name, value in given.items())
        return Settled(atoms, edges, "as in the earlier part of this run", automatic)
    if not loaded:
        return Settled(*usual, "usual", automatic)
    from atomsieve.predict.memory_law import budget_of

    some = lambda: sample(reader, options.max_structure_atoms)  # noqa: E731 - larger ones are not computed
    found = budget_of(model, some, usual_budget(model), want=want, head=head, share=share * lanes)
    atoms, edges = options.max_atoms or found.max_atoms, options.max_edges or found.max_edges
    return Settled(atoms, edges, found.why if len(automatic) == 2 else f"partly as asked; {found.why}", automatic)


def _recorded(folder: Folder) -> dict[str, int]:
    """Return what an earlier part of this run found for itself of its budget, by name."""
    if not folder.run.is_file():
        return {}
    found = manifest.read(folder)
    return {name: int(found["batches"][name]) for name in found.get("budget", {}).get("automatic", [])}


def sample(reader: Any, largest: int = 1 << 62) -> StructureBatch:
    """Return a few structures of at most `largest` atoms from all over the input."""
    from atomsieve.structures.fields import CONDITIONS

    n = len(reader)
    starts = np.linspace(0, n - AT_EACH, PLACES).astype(int).tolist() if n > PLACES * AT_EACH else [0]
    step = AT_EACH if len(starts) > 1 else n
    found = StructureBatch.concatenate([reader.read(s, s + step, CONDITIONS) for s in starts])
    return found if (found.counts <= largest).all() else found.take(np.flatnonzero(found.counts <= largest))


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
