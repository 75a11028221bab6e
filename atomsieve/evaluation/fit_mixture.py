"""Fit the learned mixture of heads of a gfm/ folder to files of structures whose sources are its heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, unknown
from atomsieve.gfm import read_manifest, record_files
from atomsieve.gfm.manifest import MIXTURE
from atomsieve.gfm.mixture_file import dump_mixture
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.structures import StructureReader
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import FOLDER, open_any
from atomsieve.uncertainty.head_mixture import INPUTS, Mixture, composition
from atomsieve.uncertainty.head_mixture_fit import fit_mixture

MOST = 200_000
"""Structures of each head in one file that are looked at, drawn evenly."""
_READ = 20_000


def fit_folder_mixture(
    folder: str | Path,
    data: Sequence[str | Path],
    inputs: str = "fractions",
    seed: int = 0,
    heads: Sequence[str] | None = None,
) -> Mixture:
    """Fit the mixture of a gfm/ folder to the compositions in files, put it into the folder and return it.

    data : files whose sources are called like heads; other sources are left out. `HEAD=PATH` is a file that is no
        dataset, whose structures are all of one head; files are converted beside the folder. inputs : see `Mixture`.
    heads : mix these alone; None takes all that are in the files.

    Raises
    ------
    UsageError
        for an unknown name; DataError if the files hold structures of fewer than two heads.
    """
    if inputs not in INPUTS:
        raise unknown("input of a mixture", inputs, INPUTS)
    manifest = read_manifest(folder)
    names = tuple(h.name for h in manifest.heads)
    for name in heads or ():
        if name not in names:
            raise unknown("head", name, names)
    chosen = names if heads is None else tuple(heads)
    known = np.zeros((len(names), MAX_NUMBER), bool)
    for k, spec in enumerate(manifest.heads):
        known[k, np.array(sorted(spec.references), int) - 1] = True
    counts, found_heads = [np.zeros((0, MAX_NUMBER))], [np.zeros(0, np.int64)]
    sources: list[str] = []
    for path, reading in [_parse(given, names) for given in data]:
        with open_any(path, reading, folder=Path(folder).absolute().parent / FOLDER) as reader:
            own, head = _read(reader, names, chosen)
            sources += [s.name for s in reader.sources]
        counts.append(own)
        found_heads.append(head)
    head = np.concatenate(found_heads)
    if len(np.unique(head)) < 2:
        raise DataError(
            f"{', '.join(map(str, data))}: a mixture needs structures of at least two heads (sources there: "
            f"{', '.join(dict.fromkeys(sources)) or 'none'}; heads: {', '.join(chosen)}); give the files trained on"
        )
    found = fit_mixture(np.concatenate(counts), head, known, names, inputs=inputs, seed=seed)
    record_files(folder, {MIXTURE: dump_mixture(found)})
    return found


def _parse(given: str | Path, heads: Sequence[str]) -> tuple[Path, ReadOptions | None]:
    """Return the path of `PATH` or `HEAD=PATH`, and how it is read."""
    head, equals, rest = str(given).partition("=")
    if not equals or Path(given).exists():
        return Path(given), None
    if head not in heads:
        raise unknown("head", head, heads)
    return Path(rest), ReadOptions(source=head)


def _read(
    reader: StructureReader, names: tuple[str, ...], chosen: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return compositions [M,118] and heads [M] of the structures whose source is a chosen head, `MOST` of each."""
    index = np.array([names.index(s.name) if s.name in chosen else -1 for s in reader.sources] + [-1], np.int64)
    given = reader.read_arrays(0, len(reader), ["head"]).get("head")
    if given is None:
        source = np.full(len(reader), 0 if len(reader.sources) == 1 else -1, np.int64)
    else:
        source = given.astype(np.int64)
    head = index[source]  # the last is -1, of structures without a source
    keep = np.zeros(len(head), bool)
    for k in np.unique(head[head >= 0]):
        rows = np.flatnonzero(head == k)
        keep[rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(np.int64))]] = True
    parts = [np.zeros((0, MAX_NUMBER))]
    for start in range(0, len(reader), _READ):
        stop = min(start + _READ, len(reader))
        if keep[start:stop].any():
            batch = reader.read(start, stop, ())
            parts.append(composition(batch.numbers, batch.ptr)[keep[start:stop]])
    return np.concatenate(parts), head[keep]
