"""The budget of a run's batches: atoms and estimated edges that are evaluated at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.packing import usual_budget
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import run_record
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.structures import StructureBatch, StructureReader
from atomsieve.structures.fields import CONDITIONS

PLACES, AT_EACH = 4, 64
"""A sample of the candidates: so many places spread over the input, so many structures at each."""


@dataclass(frozen=True)
class BatchBudget:
    """The budget of a batch.

    Attributes
    ----------
    max_atoms, max_edges : atoms and estimated edges of a batch.
    why : where the numbers come from, for people.
    automatic : names of those that no option gave.
    """

    max_atoms: int
    max_edges: int
    why: str
    automatic: tuple[str, ...] = ()

    @property
    def is_chosen(self) -> bool:
        """Whether the numbers are neither those of the options nor the usual ones."""
        return not self.why.startswith(("as asked", "usual"))


def resolve_batch_budget(
    predictor: AnyPredictor,
    reader: StructureReader,
    options: ScreenOptions,
    folder: ResultsFolder,
    *,
    head: str,
    want: set[str],
    overwrite: bool,
    share: int,
    loaded: bool,
) -> BatchBudget:
    """Return the budget of a run's batches: from the options, from an earlier part of the run, or from free memory.

    share : processes that share the device, or the machine if that is a CPU. loaded : the predictor computes in this
        process and was loaded for this run; any other gets the usual budget.
    """
    model = predictor.costliest()
    usual = options.budget(usual_budget(model))
    given = {"max_atoms": options.max_atoms, "max_edges": options.max_edges}
    automatic = tuple(name for name, value in given.items() if value is None)
    if not automatic:
        return BatchBudget(*usual, "as asked")
    recorded = {} if overwrite else _read_recorded(folder)
    if set(automatic) <= set(recorded):
        atoms, edges = (recorded[name] if value is None else value for name, value in given.items())
        return BatchBudget(atoms, edges, "as in the earlier part of this run", automatic)
    if not loaded:
        return BatchBudget(*usual, "usual", automatic)
    from atomsieve.predict.memory_budget import find_budget

    found = find_budget(
        model,
        partial(sample_structures, reader, options.max_structure_atoms),  # larger ones are not computed
        usual_budget(model),
        want=want,
        head=head,
        share=share * predictor.capabilities.streams,
    )
    atoms, edges = options.max_atoms or found.max_atoms, options.max_edges or found.max_edges
    return BatchBudget(atoms, edges, found.why if len(automatic) == 2 else f"partly as asked; {found.why}", automatic)


def _read_recorded(folder: ResultsFolder) -> dict[str, int]:
    """Return the numbers that an earlier part of this run found by itself, by name."""
    if not folder.run.is_file():
        return {}
    found = run_record.read(folder)
    return {name: int(found["batches"][name]) for name in found.get("budget", {}).get("automatic", [])}


def sample_structures(reader: StructureReader, largest: int = 1 << 62) -> StructureBatch:
    """Return a few structures of at most `largest` atoms from all over the input."""
    n = len(reader)
    starts = np.linspace(0, n - AT_EACH, PLACES).astype(int).tolist() if n > PLACES * AT_EACH else [0]
    step = AT_EACH if len(starts) > 1 else n
    found = StructureBatch.concatenate([reader.read(s, s + step, CONDITIONS) for s in starts])
    return found if (found.counts <= largest).all() else found.take(np.flatnonzero(found.counts <= largest))
