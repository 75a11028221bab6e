"""Results in other formats: tables of rows (csv, parquet, npz), or structures in the formats of that registry."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, require, unknown
from atomsieve.predict.status import Status
from atomsieve.runs.output_files import atomic_draft, output_errors
from atomsieve.screen.results.columns import COLUMNS, NO_REASON
from atomsieve.screen.results.record import Results, require_complete
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.targets import check_target
from atomsieve.structures import SourceInfo, StructureBatch
from atomsieve.structures.batch import ragged_index
from atomsieve.structures.formats import WriteOptions, find_writer, open_sink, writable_endings

Rows = Iterable[NDArray[Any]]
Texts = Mapping[str, Sequence[str]]
"""Columns by name, each with a text for every row that is written."""


def export(
    results: Results,
    out: str | Path,
    rows: Rows | None = None,
    *,
    texts: Texts | None = None,
    overwrite: bool = False,
    form: str | None = None,
    reasons: Counter[str] | None = None,
) -> int:
    """Write rows to `out`, whose ending names the format; return the number of rows.

    `csv`, `parquet` and `npz` hold rows. Every format of structures that can be written (`structures.formats`) holds
    the structures of the rows, read from the screened input, with their results as labels.

    rows : arrays of rows (dtype `ROW`), written in their order; None writes all rows in input order.
    texts : further columns, one text for each row (not every format of structures has a place for them).
    form : asks for a folder with one file of that format (cif, poscar) per structure, named by its id.
    reasons : is told why structures are skipped that the format cannot hold.

    Raises
    ------
    UsageError
        if the ending is not known.
    AtomSieveError
        if `out` is there already, the results are not complete, or the input or the forces changed or are gone.
    """
    path = Path(out)
    if form is None:
        check_format(path)
    check_target(path, overwrite, results)
    require_complete(results)
    chosen = results.iter_rows() if rows is None else rows
    with output_errors(path):
        table = TABLES.get(_ending(path)) if form is None else None
        if table is None:
            return _write_structures(results, path, chosen, texts or {}, WriteOptions((), overwrite), form, reasons)
        with atomic_draft(path, durable=False) as draft:
            return table(results, draft, chosen, texts or {})


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
    with open_screened_input(results) as reader:
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


def _write_structures(
    results: Results,
    path: Path,
    chosen: Rows,
    texts: Texts,
    options: WriteOptions,
    form: str | None,
    reasons: Counter[str] | None,
) -> int:
    """Write structures with their results. A format without room for more values keeps the head as source alone."""
    ensemble = results.manifest["ensemble"]
    about = f"predicted by ensemble {ensemble['id'][:16]}, {' or '.join(results.labels.precisions)}"
    row, n = find_writer(path) if form is None else None, 0
    options = replace(options, sources=[SourceInfo(head, about) for head in results.labels.heads])
    with open_sink(path, options, form) as sink:
        for rows, batch in _structures(results, chosen):
            if row is not None and row.holds_info:
                sink.write(batch, _info(results, rows, texts))
            else:
                sink.write(batch.replace(head=rows["head"].astype(np.int32)))
            n += len(rows)
    if reasons is not None:
        reasons.update(sink.reasons)
    return n - sink.skipped


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
        raise unknown("format", _ending(path), {*TABLES, *(end[1:] for end in writable_endings())})
