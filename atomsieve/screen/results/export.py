"""Results in other formats: tables of rows (csv, parquet, npz), or structures in the formats of that registry."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError, require, unknown
from atomsieve.predict.status import Status
from atomsieve.runs.output_files import output_errors, require_writable
from atomsieve.screen.results.columns import COLUMNS
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import read_at, screened_input
from atomsieve.screen.selection.top_k import NO_REASON
from atomsieve.structures import SourceInfo, StructureBatch
from atomsieve.structures.batch import ragged_index
from atomsieve.structures.formats import WriteOptions, find_writer, open_sink, writable_endings

Rows = Iterable[NDArray[Any]]
Texts = Mapping[str, Sequence[str]]
"""Columns by name, each with a text for every row that is written."""


def export(
    results: Results,
    out: str | Path,
    *,
    where: str | None = None,
    top: int | None = None,
    by: str = "energy_per_atom",
    descending: bool = False,
    overwrite: bool = False,
    rows: NDArray[Any] | None = None,
    texts: Texts | None = None,
) -> int:
    """Write the rows, or those chosen, to `out`; its ending names the format. Return the number of rows.

    `csv`, `parquet` and `npz` hold rows. Every format of structures that can be written (`structures.formats`) holds
    the structures of the rows, read from the screened input, with their results as labels. `top` takes the best rows,
    best first; `rows` are rows that were chosen already, in their order, and `texts` more columns of theirs (not every
    format of structures has a place for them); else rows come in input order.

    Raises
    ------
    UsageError
        if the ending is not known or the filter not allowed.
    AtomSieveError
        if `out` is there already, the results are not complete, or the input or the forces changed or are gone.
    """
    path = Path(out)
    check_format(path)
    check_target(path, overwrite, results)
    if not results.complete:
        raise AtomSieveError(f"{results.folder.path} is not complete; run the screening again first")
    if rows is not None:
        chosen: Rows = [rows]
    elif top is not None:
        chosen = [results.top(top, by, descending=descending, where=where)]
    else:
        chosen = rows_of(results, where)
    with output_errors(path):
        table = TABLES.get(_ending(path))
        if table is None:
            return _write_structures(results, path, chosen, {} if rows is None else texts or {}, overwrite)
        draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        try:
            n = table(results, draft, chosen, {} if rows is None else texts or {})
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        return n


def check_target(path: Path, overwrite: bool, results: Results) -> None:
    """Refuse a file that is there already, unless asked to replace it, and one in a folder that is not.

    The input that was screened, and what lies in the results folder, is never replaced.
    """
    check_apart(path, results)
    if path.exists() and not overwrite:
        raise AtomSieveError(f"{path} is already there; choose another name or give --overwrite")
    if not path.absolute().parent.is_dir():
        raise AtomSieveError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    require_writable(path)


def check_apart(path: Path, results: Results) -> None:
    """Refuse to write over the screened input, into the results folder, or a folder that holds either."""
    target = path.resolve()
    for kept, what in (
        (Path(results.manifest["input_path"]), "the structures that were screened"),
        (results.folder.path, "the results that are asked"),
    ):
        kept = kept.resolve()
        if target == kept or kept in target.parents or target in kept.parents:
            raise UsageError(f"{path} would overwrite {what} ({kept}), or lie among them; choose another place")


def rows_of(results: Results, where: str | None) -> Iterator[NDArray[Any]]:
    """Yield the rows that fulfil `where`, in input order."""
    keep = results.filter(where)
    for rows in results.iter_rows():
        yield rows if keep is None else rows[keep(rows)]


# -- tables of rows ------------------------------------------------------------------------------------------------


def _write_csv(results: Results, path: Path, chosen: Rows, texts: Texts) -> int:
    n = 0
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*(f"{c.name} [{c.unit}]" if c.unit else c.name for c in COLUMNS.values()), *texts])
        texts = {name: [_no_command(text) for text in said] for name, said in texts.items()}
        for rows in chosen:
            more = zip(*texts.values(), strict=True) if texts else repeat(())
            out.writerows(
                [*(results.labels.text(name, row[name]) for name in COLUMNS), *said]
                for row, said in zip(rows, more, strict=bool(texts))
            )
            n += len(rows)
    return n


def _no_command(text: str) -> str:
    """Return a text that spreadsheets do not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _write_npz(results: Results, path: Path, chosen: Rows, texts: Texts) -> int:
    rows = np.concatenate([np.asarray(r) for r in chosen])
    names = {
        "heads": np.array(results.labels.heads),
        "precisions": np.array(results.labels.precisions),
        "status_codes": np.array(list(results.labels.statuses)),
        "status_names": np.array(list(results.labels.statuses.values())),
    }
    arrays: dict[str, Any] = {name: rows[name] for name in COLUMNS}
    np.savez(path, **{**arrays, **names, **{name: np.array(said) for name, said in texts.items()}})
    return len(rows)


def _write_parquet(results: Results, path: Path, chosen: Rows, texts: Texts) -> int:
    pa = require("pyarrow", "data", "writing Parquet")
    parquet = require("pyarrow.parquet", "data", "writing Parquet")
    names = {
        "head": pa.array(results.labels.heads),
        "precision": pa.array(results.labels.precisions),
        "status": pa.array([results.labels.status(code) for code in range(256)]),
    }

    def column(name: str, rows: NDArray[Any]) -> Any:
        if name in names:
            return pa.DictionaryArray.from_arrays(pa.array(rows[name].astype(np.int16)), names[name])
        return pa.array(np.ascontiguousarray(rows[name]))

    def schema(rows: NDArray[Any]) -> Any:
        known = [
            pa.field(c.name, column(c.name, rows).type, metadata={"unit": c.unit, "doc": c.doc})
            for c in COLUMNS.values()
        ]
        return pa.schema([*known, *(pa.field(name, pa.string()) for name in texts)])

    n, out = 0, None
    try:
        for rows in chosen:
            out = out or parquet.ParquetWriter(path, schema(rows))
            more = [pa.array(said, pa.string()) for said in texts.values()]
            out.write_table(pa.Table.from_arrays([*(column(name, rows) for name in COLUMNS), *more], schema=out.schema))
            n += len(rows)
    finally:
        if out is not None:
            out.close()
    return n


# -- structures with their results ---------------------------------------------------------------------------------


def _structures(results: Results, chosen: Rows) -> Iterator[tuple[NDArray[Any], StructureBatch]]:
    """Yield rows with their structures, in the order of the rows, with the results as labels."""
    with screened_input(results) as reader:
        starts = np.concatenate([[0], np.cumsum(reader.counts()[: results.chunks.n])])
        forces = results.forces(int(starts[-1]))
        for rows in chosen:
            if len(np.unique(rows["position"])) != len(rows):
                raise UsageError(
                    f"{results.folder.path} has several heads, and a structure can carry the results of one; choose it "
                    f"with --where \"head == '{results.labels.heads[0]}'\""
                )
            batch = read_at(reader, rows["position"])
            ok = rows["status"] == Status.OK
            changes: dict[str, Any] = {"energy": rows["energy"].astype(np.float64), "has_energy": ok}
            if forces is not None and len(rows):
                atoms = ragged_index(starts[rows["position"]], batch.counts)
                head = np.repeat(rows["head"].astype(np.int64), batch.counts)
                changes |= {"forces": forces[atoms, head].astype(np.float64), "has_forces": ok}
            yield rows, batch.replace(**changes)


def _write_structures(results: Results, path: Path, chosen: Rows, texts: Texts, overwrite: bool) -> int:
    """Write structures with their results. A format without room for more values keeps the head as source alone."""
    ensemble = results.manifest["ensemble"]
    about = f"predicted by ensemble {ensemble['id'][:16]}, {' or '.join(results.labels.precisions)}"
    form, n = find_writer(path), 0
    with open_sink(path, WriteOptions([SourceInfo(head, about) for head in results.labels.heads], overwrite)) as sink:
        for rows, batch in _structures(results, chosen):
            if form is not None and form.holds_info:
                sink.write(batch, _info(results, rows, texts))
            else:
                sink.write(batch.replace(head=rows["head"].astype(np.int32)))
            n += len(rows)
    return n


def _info(results: Results, rows: NDArray[Any], texts: Texts) -> list[dict[str, Any]]:
    """Return the columns of each row by name, without those that the structure has already."""
    names = [name for name in COLUMNS if name not in ("energy", "natoms")]
    out = []
    for k, row in enumerate(rows):
        info: dict[str, Any] = {name: column[k] for name, column in texts.items()}
        info |= {name: row[name].item() for name in names}
        # In extended XYZ a key without a value would swallow the next one when the file is read.
        info |= {name: results.labels.text(name, row[name]) or NO_REASON for name in CODED}
        out.append(info)
    return out


TABLES: dict[str, Callable[[Results, Path, Rows, Texts], int]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "npz": _write_npz,
}
"""Writers of tables of rows, by the ending of the file; other endings are those of formats of structures."""
CODED = ("head", "precision", "status", "outside")
"""Columns of codes, which files of structures spell out."""


def _ending(path: Path) -> str:
    return path.suffix.lstrip(".").lower()


def check_format(path: Path) -> None:
    """Refuse a file whose ending names neither a table nor a format of structures that can be written."""
    if _ending(path) not in TABLES and find_writer(path) is None:
        raise unknown("format", _ending(path), [*TABLES, *(end[1:] for end in writable_endings())])
