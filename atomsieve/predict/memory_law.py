"""How large a batch may be: the memory that an ensemble takes on a device, learned once from a few real calls.

The law is bytes = fixed + per_atom * atoms + per_edge * edges. It belongs to an ensemble, a precision, a backend, a
device and what is asked for, and is kept in the user's cache folder (`$XDG_CACHE_HOME/atomsieve/memory`, or
`~/.cache/atomsieve/memory`), so that the probe runs once on a machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.predict.free_memory import free_bytes, give_back, readable
from atomsieve.structures import StructureBatch

log = logging.getLogger(__name__)

VERSION = 1
SIZES = {"cpu": (500, 1000, 2000), "cuda": (2000, 6000, 18000)}
"""Atoms of the calls of a probe, on each kind of device."""
STRETCH = (1.0, 1.4)
"""Every call is made with the structures as they are and blown up, which leaves a third of the edges: only so can what
an atom takes be told from what an edge takes."""
SAFETY = 1.25
"""On what the law says: candidates are not the structures of the probe, and allocators round up and fragment."""
USABLE = 0.8
"""Of the memory that is free."""
ROOMY = 6e9
"""Bytes. A process on a CPU that has more than this to itself is not worth a probe: the usual batch takes a few times
less with every backend."""
FLOOR = 256
"""Atoms. Where not even so many fit at once, too little memory is free to begin with."""
FEW = (64, 20_000)
"""Structures and atoms at most that are looked at before anything is known of their memory."""
SCREENED = frozenset({"energy", "forces", "spread"})


@dataclass(frozen=True)
class MemoryLaw:
    """Bytes that a call takes beyond what the process holds before it: fixed + per_atom * atoms + per_edge * edges."""

    fixed: float
    per_atom: float
    per_edge: float

    def bytes(self, atoms: float, edges: float) -> float:
        """Return what a batch is expected to take."""
        return self.fixed + self.per_atom * atoms + self.per_edge * edges


@dataclass(frozen=True)
class Budget:
    """Most atoms and estimated edges of one batch, and one line on where they come from."""

    max_atoms: int
    max_edges: int
    why: str


def fit(atoms: Collection[float], edges: Collection[float], taken: Collection[float]) -> MemoryLaw:
    """Return the law that fits measured bytes best (non-negative least squares on relative errors), never below any.

    Raises
    ------
    DataError
        if a measurement is not a positive finite number.
    """
    from scipy.optimize import nnls

    y = np.asarray(list(taken), float)
    if len(y) == 0 or not (np.isfinite(y) & (y > 0)).all():
        raise DataError(f"memory of the probe is {y.tolist()} bytes; a law needs positive numbers")
    x = np.stack([np.ones(len(y)), np.asarray(list(atoms), float), np.asarray(list(edges), float)], axis=1)
    scale = x.max(0)
    scale[scale == 0] = 1.0
    found, _ = nnls(x / scale / y[:, None], np.ones(len(y)))
    found *= max(1.0, float(np.max(y / np.maximum(x / scale @ found, 1e-300))))
    return MemoryLaw(*(float(v) for v in found / scale))


def budget_of(
    predictor: Any,
    sample: StructureBatch | Callable[[], StructureBatch],
    usual: tuple[int, int],
    free: float | None = None,
    *,
    want: Collection[str] = SCREENED,
    head: str | None = None,
    share: int = 1,
) -> Budget:
    """Return the budget of a batch of structures like those of `sample`, on the predictor's device.

    On a CPU the usual budget is the one for speed, and scarce memory only lowers it; on a GPU memory decides, up to
    what the backend evaluates at once. Both numbers are rounded down to a few leading bits, so that two starts on one
    machine agree although a little more or less memory is free.

    Parameters
    ----------
    predictor
        an `atomsieve.predict.Predictor`.
    sample
        some of the candidates, or a function that gives them, which is called only if they are needed.
    usual
        atoms and edges of a batch where nothing is known of memory.
    free
        bytes that are free on the device; None asks.
    want
        what will be asked for.
    head
        for which head; None takes the predictor's.
    share
        processes that share the free bytes.

    Raises
    ------
    UsageError
        if `share` is below 1.
    AtomSieveError
        if too little memory is free for batches that are worth it.
    """
    if share < 1:
        raise UsageError(f"share must be at least 1, got {share}")
    kind = _kind(predictor)
    room = (free_bytes(predictor.device) if free is None else free) / share
    if kind == "cpu" and room >= ROOMY:
        return Budget(*usual, f"usual on a CPU ({readable(room)} free for each process)")
    if not np.isfinite(room):
        return Budget(*usual, "usual: how much memory is free cannot be told here")
    sample = sample() if callable(sample) else sample
    key = key_of(predictor, want)
    law = recall(key)
    how = "known from an earlier probe"
    if law is None:
        law, how = learn(predictor, sample, want, head, room), "learned in a probe"
        if law is None:
            return Budget(*usual, "usual: no structure of the sample could be measured")
        remember(key, law)
    atoms, edges, excess = _shape(sample, predictor.cutoff)
    most = USABLE * room / SAFETY - law.fixed
    limit = (usual[0], usual[1]) if kind == "cpu" else (int(predictor.run.max_atoms), 1 << 31)
    ratio = usual[1] / usual[0] if kind == "cpu" else max(edges / max(atoms, 1), 1.0)
    per_atom = law.per_atom + law.per_edge * ratio * excess
    fits = max(most, 0.0) / max(per_atom, 1e-9)
    if fits < min(FLOOR, *limit):
        needed = SAFETY / USABLE * (law.fixed + FLOOR * per_atom)
        raise AtomSieveError(
            f"only {readable(room)} are free on {predictor.device} for each process, {readable(needed)} are needed for "
            f"batches of {FLOOR} atoms; make room, start fewer processes, or give --max-atoms and --max-edges"
        )
    max_atoms = min(limit[0], max(1, rounded(fits)))
    max_edges = min(limit[1], max(1, rounded(fits * ratio)))
    if kind == "cpu" and (max_atoms, max_edges) == tuple(usual):
        why = f"usual on a CPU, fits into {readable(room)}"
    else:
        taken = law.bytes(max_atoms, max_edges * excess)
        why = f"about {readable(taken)} of {readable(room)} free, {how}"
    return Budget(max_atoms, max_edges, why)


def rounded(value: float) -> int:
    """Return the largest of 1, 1.25, 1.5 and 1.75 times a power of two that is not above `value`; 0 below 1."""
    if value < 1:
        return 0
    whole = int(min(value, 1 << 40))
    step = max(1 << max(whole.bit_length() - 3, 0), 1)
    return whole // step * step


def key_of(predictor: Any, want: Collection[str]) -> dict[str, Any]:
    """Return what a law belongs to, as plain data."""
    return {
        "version": VERSION,
        "ensemble": predictor.ensemble_id,
        "kind": predictor.kind,
        "members": predictor.members,
        "precision": predictor.precision,
        "backend": predictor.backend,
        "artefact": getattr(predictor, "artefact", None),
        "device": _device_name(predictor),
        "want": sorted(want),
    }


# -- the probe -------------------------------------------------------------------------------------------------------


def learn(
    predictor: Any,
    sample: StructureBatch,
    want: Collection[str] = SCREENED,
    head: str | None = None,
    free: float = np.inf,
) -> MemoryLaw | None:
    """Measure a few calls on structures of `sample`; None where the sample gives nothing to measure.

    A probe that itself runs out of memory ends there, and so does one whose next call would take more than is `free`
    (bytes), for where memory is limited a process may be killed without a word: the smaller calls tell the law.
    """
    from atomsieve.predict.packing import is_out_of_memory, release_memory

    if (meter := _meter(predictor)) is None:
        return None
    if (good := _healthy(predictor, sample, want, head)) is None:
        return None
    seen: list[tuple[int, float, float]] = []
    for size in SIZES[_kind(predictor)]:
        for stretch in STRETCH:
            batch = _blown_up(_filled(good, size), stretch)
            heaviest = max((took / atoms for atoms, _, took in seen), default=0.0)
            if heaviest * batch.n_atoms > USABLE * free:
                break
            try:
                edges = _edges(batch, predictor.cutoff).sum()
                taken = meter(lambda batch=batch: predictor(batch, want, head=head))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                release_memory()
                break
            if taken > 0:
                seen.append((batch.n_atoms, edges, taken))
    if not seen:
        return None
    law = fit(*zip(*seen, strict=True))
    log.debug("memory law of %s: %s from %s", predictor.ensemble_id[:12], law, seen)
    return law


def _healthy(predictor: Any, sample: StructureBatch, want: Collection[str], head: str | None) -> StructureBatch | None:
    """Return those of a few structures of the sample that have a result. The call warms everything up besides.

    Where memory does not suffice for them, the smaller half is tried, down to a single one.
    """
    from atomsieve.predict.packing import is_out_of_memory, release_memory

    few = _few(sample)
    whole = np.cumsum(few.counts) <= SIZES[_kind(predictor)][0]
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


def _few(sample: StructureBatch) -> StructureBatch:
    """Return a few structures, the smallest first; at least one, and no more atoms than `FEW` unless one has them."""
    few = sample.slice(0, min(len(sample), FEW[0]))
    few = few.take(np.argsort(few.counts, kind="stable"))
    return few.slice(0, max(1, int((np.cumsum(few.counts) <= FEW[1]).sum()))) if len(few) else few


def _filled(batch: StructureBatch, atoms: int) -> StructureBatch:
    """Return the structures again and again until they have about so many atoms."""
    times = max(1, round(atoms / batch.n_atoms))
    if batch.n_atoms > atoms:
        kept = max(1, int(np.searchsorted(np.cumsum(batch.counts), atoms, side="right")))
        return batch.slice(0, kept)
    return batch.take(np.tile(np.arange(len(batch)), times))


def _blown_up(batch: StructureBatch, factor: float) -> StructureBatch:
    return batch.replace(positions=batch.positions * factor, cell=batch.cell * factor)


def _edges(batch: StructureBatch, cutoff: float) -> NDArray[np.float64]:
    """Return the directed edges of each structure [S], counted."""
    from atomsieve.graphs import neighbor_list

    rows = np.asarray(neighbor_list(batch, cutoff).row_ptr)
    return np.diff(rows[batch.ptr]).astype(np.float64)


def _shape(sample: StructureBatch, cutoff: float) -> tuple[float, float, float]:
    """Return atoms, estimated edges, and by what factor (at least 1) the estimate is below the edges that there are.

    Structures in much vacuum have more neighbours than their density says.
    """
    from atomsieve.graphs.estimate import edge_budget_estimate

    atoms, estimated = float(sample.n_atoms), float(edge_budget_estimate(sample, cutoff).sum())
    few = _few(sample)
    try:
        counted = float(_edges(few, cutoff).sum())
    except AtomSieveError:  # one that has no neighbour list: the rest of the run will say which
        return atoms, estimated, 1.0
    guessed = float(edge_budget_estimate(few, cutoff).sum())
    return atoms, estimated, max(1.0, counted / max(guessed, 1.0))


def _meter(predictor: Any) -> Any:
    """Return a function that tells the bytes that a call takes, None where that cannot be told."""
    if _kind(predictor) == "cuda":
        return lambda call: _device_peak(predictor.device, call)
    return _resident_peak if sys.platform == "linux" else None


def _device_peak(device: Any, call: Any) -> float:
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def _resident_peak(call: Any) -> float:
    """Return by how much a call raises the resident memory of this process at its highest.

    What was freed before is given back to the system first, and the mark of the highest is set anew; where the system
    does not allow that, the mark of the process's whole life makes the number too large, never too small.
    """
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        log.debug("the mark of the highest resident memory cannot be set anew")
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024.0 * float(line.split()[1])
    return float("nan")


def _kind(predictor: Any) -> str:
    return str(predictor.device).partition(":")[0]


def _device_name(predictor: Any) -> str:
    import torch

    if _kind(predictor) == "cuda":
        return str(torch.cuda.get_device_name(predictor.device))
    return f"cpu, {torch.get_num_threads()} threads"


# -- the cache -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """Return where laws are kept, None where this user has no such place."""
    if Path(named := os.environ.get("XDG_CACHE_HOME", "")).is_absolute():
        return Path(named) / "atomsieve" / "memory"
    try:
        return Path.home() / ".cache" / "atomsieve" / "memory"
    except RuntimeError:
        return None


def _file_of(key: dict[str, Any]) -> Path | None:
    folder = cache_folder()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return None if folder is None else folder / f"{digest[:32]}.json"


def recall(key: dict[str, Any]) -> MemoryLaw | None:
    """Return the law that was kept for a key, None if there is none that is whole."""
    path = _file_of(key)
    try:
        found = json.loads(path.read_text()) if path is not None else None
        law = MemoryLaw(**found["law"]) if found is not None and found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if law is None or not all(isinstance(v, float) and np.isfinite(v) and v >= 0 for v in asdict(law).values()):
        return None
    return law if law.per_atom + law.per_edge > 0 else None


def remember(key: dict[str, Any], law: MemoryLaw) -> None:
    """Keep a law; a cache that cannot be written costs a probe the next time, nothing else."""
    if (path := _file_of(key)) is None:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"key": key, "law": asdict(law)}, indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        log.debug("the memory law is not kept: %s", error)
