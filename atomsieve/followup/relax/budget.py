"""How much is relaxed at a time: small batches on a CPU, as many as memory holds on a GPU."""

from __future__ import annotations

from collections.abc import Callable

from atomsieve.devices import device_kind
from atomsieve.followup.relax.files import RelaxFolder
from atomsieve.followup.relax.options import GROUP_BATCHES, RelaxOptions
from atomsieve.predict import AnyPredictor
from atomsieve.predict.packing import BUDGETS
from atomsieve.structures import StructureBatch

WANT = ("energy", "forces", "stress", "spread")


def settle_budget(
    model: AnyPredictor,
    options: RelaxOptions,
    folder: RelaxFolder,
    sample: Callable[[], StructureBatch],
    *,
    head: str,
    overwrite: bool,
    share: int,
) -> tuple[int, int, int]:
    """Return the atoms and edges of a batch and the atoms of a group, as asked.

    What was not asked for on a GPU is taken from the earlier part of this relaxation, or from what its memory holds of
    structures like those of `sample`. share : processes that have the same GPU.
    """
    kind = device_kind(model.device)
    if kind != "cuda" or (options.max_atoms is not None and options.max_edges is not None):
        return options.budget(kind)
    if folder.manifest.is_file() and not overwrite:
        before = folder.read()["batches"]
        atoms, edges = before["max_atoms"], before["max_edges"]
    else:
        from atomsieve.predict.memory_budget import find_budget

        found = find_budget(model, sample, BUDGETS[kind], want=WANT, head=head, share=share)
        atoms, edges = found.max_atoms, found.max_edges
    atoms, edges = options.max_atoms or atoms, options.max_edges or edges
    return atoms, edges, options.group_atoms or GROUP_BATCHES * atoms
