"""Fit the domain of an ensemble that is there already, from structures of the sources that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, unknown
from atomsieve.gfm import load_gfm, record_files
from atomsieve.gfm.domain_file import dump_domain, read_domain
from atomsieve.gfm.manifest import DOMAIN
from atomsieve.models import Ensemble
from atomsieve.structures import StructureBatch, StructureReader
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import FOLDER, is_dataset, open_any
from atomsieve.uncertainty.domain import HeadDomain
from atomsieve.uncertainty.domain_fit import fit_head

MOST = 20_000
"""Structures of each head that are looked at, drawn evenly."""
_READ = 5000


def fit_domain(
    ensemble: Ensemble,
    reader: StructureReader,
    held: StructureReader | None = None,
    heads: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, HeadDomain]:
    """Fit the domain of the heads whose sources are in a file, by name; those with too few structures are left out.

    reader : of the structures that were trained on. held : of others of the same sources, which then set the limits;
        without it a tenth of the structures is kept from the fit for that.
    heads : names, None for all that are in the file. `progress(done, total)` counts heads.

    Raises
    ------
    UsageError
        for a head that is not in the ensemble; DataError if the file holds no source of that name.
    """
    names = [h.name for h in ensemble.heads]
    for name in heads or ():
        if name not in names:
            raise unknown("head", name, names)
    rows, kept = _by_source(reader, names), {} if held is None else _by_source(held, names)
    chosen = [name for name in names if name in rows and (heads is None or name in heads)]
    lacking = [name for name in heads or () if name not in rows]
    if lacking or not chosen:
        raise DataError(
            f"no source of the file is called {lacking[0] if lacking else 'like a head'} (sources: "
            f"{', '.join(rows) or 'none'}; heads: {', '.join(names)}); give the file that was trained on"
        )
    encoder = ensemble.take([0]).float().cpu().eval()
    out = {}
    for done, name in enumerate(chosen):
        own = _read(reader, rows[name])
        extra = _read(held, kept[name]) if held is not None and name in kept else StructureBatch.empty()
        both = StructureBatch.concatenate([own, extra]) if len(extra) else own
        found = fit_head(encoder, both.take, np.arange(len(own)), np.arange(len(own), len(both)))
        if found is not None:
            out[name] = found
        if progress is not None:
            progress(done + 1, len(chosen))
    return out


def fit_folder_domain(
    folder: str | Path,
    trained: str | Path,
    held: str | Path | None = None,
    reading: ReadOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, HeadDomain]:
    """Fit domains as `fit_domain` does, from files, and put them into a gfm/ folder; other heads keep theirs.

    reading : how files that are no datasets are read; they are converted beside the folder.
    """
    ensemble, manifest = load_gfm(folder)
    names = [h.name for h in manifest.heads]
    place = Path(folder).absolute().parent / FOLDER
    with ExitStack() as stack:

        def enter(path: str | Path) -> StructureReader:
            return stack.enter_context(open_any(path, None if is_dataset(Path(path)) else reading, folder=place))

        reader, extra = enter(trained), None if held is None else enter(held)
        found = fit_domain(ensemble, reader, extra, progress=progress)
    record_files(
        folder, {DOMAIN: lambda: dump_domain(read_domain(folder, names, manifest.config.hidden) | found, names)}
    )
    return found


def _by_source(reader: StructureReader, heads: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return the positions of the structures of each source; without sources all are of the only head."""
    if not reader.sources and len(heads) == 1:
        return {heads[0]: np.arange(len(reader))}
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(reader), _READ):
        batch = reader.read(start, min(start + _READ, len(reader)), ("head",))
        found.append(np.zeros(len(batch), np.int64) if batch.head is None else batch.head.astype(np.int64))
    head = np.concatenate(found)
    return {s.name: np.flatnonzero(head == k) for k, s in enumerate(reader.sources) if (head == k).any()}


def _read(reader: StructureReader, rows: NDArray[np.int64]) -> StructureBatch:
    """Return at most `MOST` of the structures at `rows`, drawn evenly."""
    if len(rows) > MOST:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, MOST).astype(np.int64))]
    parts = []
    for start in range(0, len(reader), _READ):
        inside = rows[(rows >= start) & (rows < start + _READ)]
        if len(inside):
            parts.append(reader.read(start, min(start + _READ, len(reader)), ("charge", "spin")).take(inside - start))
    return StructureBatch.concatenate(parts)
