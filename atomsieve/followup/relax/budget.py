"""Size of the batches of a relaxation: small on a CPU, as large as memory allows on a GPU."""

from __future__ import annotations

from collections.abc import Callable

from atomsieve.devices import device_kind
from atomsieve.followup.relax.files import RelaxFolder
from atomsieve.followup.relax.options import GROUP_BATCHES, RelaxOptions
from atomsieve.predict import AnyPredictor
from atomsieve.predict.packing import BUDGETS
from atomsieve.structures import StructureBatch

WANT = ("energy", "forces", "stress", "spread")


def resolve_budget(
    model: AnyPredictor,
    options: RelaxOptions,
    folder: RelaxFolder,
    sample: Callable[[], StructureBatch],
    *,
    head: str,
    overwrite: bool,
    share: int,
) -> tuple[int, int, int]:
    """Return the atoms and edges of a batch and the atoms of a group.

    On a GPU, numbers that no option gives come from the earlier part of this relaxation, or from a measurement of the
    memory that structures like those of `sample` take. share : processes that use the same GPU.
    """
    kind = device_kind(model.device)
    if kind != "cuda" or (options.max_atoms is not None and options.max_edges is not None):
        return options.budget(kind)
    if folder.record.is_file() and not overwrite:
        before = folder.read()["batches"]
        atoms, edges = before["max_atoms"], before["max_edges"]
    else:
        from atomsieve.predict.memory_budget import find_budget

        found = find_budget(model, sample, BUDGETS[kind], want=WANT, head=head, share=share)
        atoms, edges = found.max_atoms, found.max_edges
    atoms, edges = options.max_atoms or atoms, options.max_edges or edges
    return atoms, edges, options.group_atoms or GROUP_BATCHES * atoms
