"""The largest batch that fits into the free memory of a device, by the memory law of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from atomsieve.devices import device_kind
from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.predict.free_memory import format_bytes, read_free_memory
from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.memory_law import MemoryLaw, law_key, load_law, store_law
from atomsieve.predict.memory_probe import SCREENED, USABLE, count_edges, measure_law, take_few
from atomsieve.structures import StructureBatch

SAFETY = 1.25
"""Factor on the law's bytes: candidates differ from the structures of the probe, and allocators round up and fragment.
"""
ROOMY = 6e9
"""Bytes. On a CPU with more free memory than this for each process no probe is made: the usual batch takes a few times
less with every backend."""
FLOOR = 256
"""Atoms. If not even such a batch fits, too little memory is free."""


@dataclass(frozen=True)
class Budget:
    """Most atoms and estimated edges of one batch, and one line on where they come from."""

    max_atoms: int
    max_edges: int
    why: str


def find_budget(
    predictor: AnyPredictor,
    sample: StructureBatch | Callable[[], StructureBatch],
    usual: tuple[int, int],
    free: float | None = None,
    *,
    want: Collection[str] = SCREENED,
    head: str | None = None,
    share: int = 1,
) -> Budget:
    """Return the budget of a batch of structures like those of `sample`, on the predictor's device.

    On a CPU the usual budget is the fastest one, and scarce memory only lowers it. On a GPU memory decides, up to the
    atoms that the backend evaluates at once. Both numbers are rounded down to a few leading bits, so that two starts on
    one machine agree although slightly different amounts of memory are free.

    Parameters
    ----------
    predictor
        computes in this process.
    sample
        some of the candidates, or a function that returns them, which is called only if they are needed.
    usual
        atoms and edges of a batch where nothing is known of memory.
    free
        bytes that are free on the device; None asks the system.
    want
        properties that will be asked for.
    head
        head that will be asked for; None takes the predictor's.
    share
        processes that share the free bytes.

    Raises
    ------
    UsageError
        if `share` is below 1.
    AtomSieveError
        if too little memory is free for batches of a useful size.
    """
    if share < 1:
        raise UsageError(f"share must be at least 1, got {share}")
    on_cpu = device_kind(predictor.device) == "cpu"
    room = (read_free_memory(predictor.device) if free is None else free) / share
    if on_cpu and room >= ROOMY:
        return Budget(*usual, f"usual on a CPU ({format_bytes(room)} free for each process)")
    if not np.isfinite(room):
        return Budget(*usual, "usual: how much memory is free cannot be told here")
    sample = sample() if callable(sample) else sample
    law, how = _find_law(predictor, sample, want, head, room)
    if law is None:
        return Budget(*usual, "usual: no structure of the sample could be measured")
    atoms, edges, excess = _edge_density(sample, predictor.cutoff)
    most = USABLE * room / SAFETY - law.fixed
    limit = (usual[0], usual[1]) if on_cpu else (predictor.capabilities.max_atoms or usual[0], 1 << 31)
    ratio = usual[1] / usual[0] if on_cpu else max(edges / max(atoms, 1), 1.0)
    per_atom = law.per_atom + law.per_edge * ratio * excess
    fits = max(most, 0.0) / max(per_atom, 1e-9)
    if fits < min(FLOOR, *limit):
        needed = SAFETY / USABLE * (law.fixed + FLOOR * per_atom)
        raise AtomSieveError(
            f"only {format_bytes(room)} are free on {predictor.device} for each process, {format_bytes(needed)} are "
            f"needed for batches of {FLOOR} atoms; make room, start fewer processes, or give --max-atoms and "
            "--max-edges"
        )
    max_atoms = min(limit[0], max(1, round_down(fits)))
    max_edges = min(limit[1], max(1, round_down(fits * ratio)))
    if on_cpu and (max_atoms, max_edges) == tuple(usual):
        why = f"usual on a CPU, fits into {format_bytes(room)}"
    else:
        taken = law.bytes(max_atoms, max_edges * excess)
        why = f"about {format_bytes(taken)} of {format_bytes(room)} free, {how}"
    return Budget(max_atoms, max_edges, why)


def _find_law(
    predictor: AnyPredictor, sample: StructureBatch, want: Collection[str], head: str | None, room: float
) -> tuple[MemoryLaw | None, str]:
    """Return the memory law and how it is known: from the cache, or by a probe; None if nothing can be measured."""
    key = law_key(predictor, want)
    if (law := load_law(key)) is not None:
        return law, "known from an earlier probe"
    law = measure_law(predictor, sample, want, head, room)
    if law is not None:
        store_law(key, law)
    return law, "learned in a probe"


def round_down(value: float) -> int:
    """Return the largest of 1, 1.25, 1.5 and 1.75 times a power of two that is not above `value`; 0 below 1."""
    if value < 1:
        return 0
    whole = int(min(value, 1 << 40))
    step = max(1 << max(whole.bit_length() - 3, 0), 1)
    return whole // step * step


def _edge_density(sample: StructureBatch, cutoff: float) -> tuple[float, float, float]:
    """Return atoms, estimated edges, and the factor (at least 1) by which the estimate falls short of counted edges.

    Structures with much vacuum have more neighbours than their mean density suggests.
    """
    from atomsieve.graphs.estimate import edge_budget_estimate

    atoms, estimated = float(sample.n_atoms), float(edge_budget_estimate(sample, cutoff).sum())
    few = take_few(sample)
    try:
        counted = float(count_edges(few, cutoff).sum())
    except AtomSieveError:  # a structure without neighbour list: the run itself will report which
        return atoms, estimated, 1.0
    guessed = float(edge_budget_estimate(few, cutoff).sum())
    return atoms, estimated, max(1.0, counted / max(guessed, 1.0))
