"""Where the structures come from: the best rows of a screening, or the first structures of any file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.followup.ensemble import find_ensemble
from atomsieve.gfm.manifest import find_folder
from atomsieve.runs.hashing import hash_json
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.table import list_columns
from atomsieve.screen.results.targets import check_apart
from atomsieve.screen.selection.select import Selection, select_one_head
from atomsieve.structures import StructureBatch, open_structures
from atomsieve.structures.carried import ID
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import FOLDER, ensure_dataset

BEST = Selection(top=50)


@dataclass(frozen=True)
class Source:
    """Chosen structures.

    Attributes
    ----------
    positions : [n], places in the input, in the order of the choice. counts : [n] atoms. ids : [n], as people see them.
    ensemble : folder. head : None takes the default one. identity : of the input, for the settings.
    results : folder of the screening, None of a file. read : returns the structures at some positions.
    """

    positions: NDArray[np.int64]
    counts: NDArray[np.int64]
    ids: list[str]
    ensemble: Path | None
    head: str | None
    identity: dict[str, Any]
    results: Path | None
    read: Callable[[NDArray[np.int64]], StructureBatch]


def is_results(path: Path) -> bool:
    """Return whether a path is the folder of a screening."""
    return ResultsFolder(path).run.is_file()


def choose_rows(
    path: Path, selection: Selection, ensemble: Path | None, moved_input: Path | None, out: Path, *, loaded: bool
) -> Source:
    """Return the best rows of a screening; `loaded`: the predictor is at hand and no ensemble is looked for."""
    results = open_results(path, moved_input)
    check_apart(out, results)
    head, rows = select_one_head(results, selection)
    if not len(rows):
        raise UsageError(f"{path} has no row to take: none is OK and fulfils --where; give another one")
    folder = None if loaded else find_ensemble(results, ensemble, "computing properties")

    def read(positions: NDArray[np.int64]) -> StructureBatch:
        with open_screened_input(results) as reader:
            return read_at(reader, positions)

    identity = {"identity": results.manifest["input"]["identity"], "screened": int(results.chunks.n)}
    positions = rows["position"].astype(np.int64)
    ids = [_format_id(value) for value in list_columns(results)[ID].values(rows).tolist()]
    return Source(positions, rows["natoms"].astype(np.int64), ids, folder, head, identity, path, read)


def choose_first(
    path: Path,
    top: int | None,
    reading: ReadOptions,
    ensemble: Path | None,
    head: str | None,
    out: Path,
    *,
    loaded: bool,
    console: Any = None,
) -> Source:
    """Return the first `top` structures of a dataset, or of a file, which is converted into `out`."""
    if ensemble is None and not loaded:
        raise UsageError(f"{path} is no results folder, which names its ensemble; name one with --ensemble")
    folder = None if ensemble is None else find_folder(ensemble)
    copy = ensure_dataset(path, out / FOLDER, reading, labels=False, keep_bad=True, console=console)

    def read(positions: NDArray[np.int64]) -> StructureBatch:
        with open_structures(copy.path) as reader:
            return read_at(reader, positions)

    with open_structures(copy.path) as reader:
        counts = np.asarray(reader.counts(), np.int64)
        identity = {"identity": reader.identity()}
        many = len(counts) if top is None else min(top, len(counts))
        if not many:
            raise UsageError(f"{path} holds no structure")
        positions = np.arange(many, dtype=np.int64)
        named = any(column.name == ID for column in reader.carried)
        ids = reader.read_carried_at(positions, ID).tolist() if named else read(positions).id.tolist()
    return Source(positions, counts[:many], [_format_id(v) for v in ids], folder, head, identity, None, read)


def _format_id(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) else str(value)


def digest_positions(positions: NDArray[np.int64]) -> str:
    """Return the SHA-256 that identifies a choice."""
    return hash_json(positions.tolist())
