"""Measures the memory law of an ensemble by a few calls on real structures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.devices import device_kind
from atomsieve.predict.free_memory import trim_heap
from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.memory_law import MemoryLaw, fit_law
from atomsieve.predict.packing import is_out_of_memory, release_memory
from atomsieve.structures import StructureBatch

log = logging.getLogger(__name__)

SIZES = {"cpu": (500, 1000, 2000), "cuda": (2000, 6000, 18000)}
"""Atoms of the measured batches, on each kind of device."""
STRETCH = (1.0, 1.4)
"""Each batch is measured as given and scaled by 1.4 (a third of the edges), so that bytes per atom and per edge can be
fitted separately."""
USABLE = 0.8
"""Share of the free memory that is used."""
FEW = (64, 20_000)
"""Most structures and most atoms of the first call, made before anything is known of their memory."""
SCREENED = frozenset({"energy", "forces", "spread"})
"""Properties that a screening asks for."""


def measure_law(
    predictor: AnyPredictor,
    sample: StructureBatch,
    want: Collection[str] = SCREENED,
    head: str | None = None,
    free: float = np.inf,
) -> MemoryLaw | None:
    """Measure a few calls on structures of `sample` and fit a law; None where nothing could be measured.

    The probe ends early if a call runs out of memory, or if the next one would take more than the bytes that are
    `free`, since the system may kill a process that exceeds its limit: then the smaller calls determine the law.
    """
    if (meter := _choose_meter(predictor)) is None:
        return None
    if (good := _find_computable(predictor, sample, want, head)) is None:
        return None
    seen: list[tuple[int, float, float]] = []
    for size in SIZES[device_kind(predictor.device)]:
        for stretch in STRETCH:
            batch = _scale_cells(_repeat_to(good, size), stretch)
            heaviest = max((took / atoms for atoms, _, took in seen), default=0.0)
            if heaviest * batch.n_atoms > USABLE * free:
                break
            try:
                edges = count_edges(batch, predictor.cutoff).sum()
                taken = meter(partial(predictor, batch, want, head=head))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                release_memory()
                break
            if taken > 0:
                seen.append((batch.n_atoms, edges, taken))
    if not seen:
        return None
    law = fit_law(*zip(*seen, strict=True))
    log.debug("memory law of %s: %s from %s", predictor.ensemble_id[:12], law, seen)
    return law


def _find_computable(
    predictor: AnyPredictor, sample: StructureBatch, want: Collection[str], head: str | None
) -> StructureBatch | None:
    """Return a few structures of the sample that have a result. The call also warms up the device and its libraries.

    Where memory does not suffice for them, the smaller half is tried, down to a single one.
    """
    few = take_few(sample)
    whole = np.cumsum(few.counts) <= SIZES[device_kind(predictor.device)][0]
    keep = np.flatnonzero((few.counts > 0) & whole)
    if len(keep) == 0 and few.counts.any():
        keep = np.flatnonzero(few.counts)[:1]
    if len(keep) == 0:
        return None
    few = few.take(keep)
    while len(few):
        try:
            found = few.take(np.flatnonzero(predictor(few, want, head=head).status == 0))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            few = few.slice(0, len(few) // 2)
        else:
            return found if len(found) else None
        release_memory()
    return None


def take_few(sample: StructureBatch) -> StructureBatch:
    """Return a few structures, the smallest first; at least one, and no more atoms than `FEW` unless one has them."""
    few = sample.slice(0, min(len(sample), FEW[0]))
    few = few.take(np.argsort(few.counts, kind="stable"))
    return few.slice(0, max(1, int((np.cumsum(few.counts) <= FEW[1]).sum()))) if len(few) else few


def _repeat_to(batch: StructureBatch, atoms: int) -> StructureBatch:
    """Repeat the structures of a batch, or take the first ones, until it has about so many atoms."""
    times = max(1, round(atoms / batch.n_atoms))
    if batch.n_atoms > atoms:
        first = max(1, int(np.searchsorted(np.cumsum(batch.counts), atoms, side="right")))
        return batch.slice(0, first)
    return batch.take(np.tile(np.arange(len(batch)), times))


def _scale_cells(batch: StructureBatch, factor: float) -> StructureBatch:
    return batch.replace(positions=batch.positions * factor, cell=batch.cell * factor)


def count_edges(batch: StructureBatch, cutoff: float) -> NDArray[np.float64]:
    """Return the number of directed edges of each structure [S], from its neighbour list."""
    from atomsieve.graphs import neighbor_list

    rows = np.asarray(neighbor_list(batch, cutoff).row_ptr)
    return np.diff(rows[batch.ptr]).astype(np.float64)


# -- meters ----------------------------------------------------------------------------------------------------------

Meter = Callable[[Callable[[], object]], float]
"""Makes a call and returns the bytes that it took at its peak."""


def _choose_meter(predictor: AnyPredictor) -> Meter | None:
    """Return the meter of the predictor's device, None where memory cannot be measured."""
    if device_kind(predictor.device) == "cuda":
        return lambda call: _measure_device_peak(predictor.device, call)
    return _measure_resident_peak if sys.platform == "linux" else None


def _measure_device_peak(device: Any, call: Callable[[], object]) -> float:
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def _measure_resident_peak(call: Callable[[], object]) -> float:
    """Return by how many bytes a call raises the peak of this process's resident memory.

    Freed memory is first returned to the system and the kernel's high-water mark is reset. Where the kernel refuses
    that, the mark of the process's whole life is used, which makes the number too large, never too small.
    """
    trim_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        log.debug("the high-water mark of resident memory cannot be reset")
    before = _read_status_bytes("VmRSS")
    call()
    return _read_status_bytes("VmHWM") - before


def _read_status_bytes(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024.0 * float(line.split()[1])
    return float("nan")
