"""Results in other formats: tables of rows (csv, parquet, npz), or structures in the formats of that registry."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError, require, unknown
from atomsieve.predict.status import Status
from atomsieve.runs.output_files import atomic_draft, output_errors
from atomsieve.screen.results.columns import COLUMNS, NO_REASON, blank_rows
from atomsieve.screen.results.record import Results, require_complete
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.table import ResultColumn, format_column, list_columns_beside
from atomsieve.screen.results.tables import protect_text
from atomsieve.screen.results.targets import check_target
from atomsieve.structures import SourceInfo, StructureBatch
from atomsieve.structures.batch import ragged_index
from atomsieve.structures.carried import ID
from atomsieve.structures.formats import WriteOptions, find_writer, open_sink, writable_endings

log = logging.getLogger(__name__)

LARGEST_NPZ = 1 << 30  # bytes of one column of texts
Rows = Iterable[NDArray[Any]]
Texts = Mapping[str, Sequence[str]]
"""Columns by name, each with a text for every row that is written."""


def export(
    results: Results,
    out: str | Path,
    rows: Rows | None = None,
    *,
    texts: Texts | None = None,
    columns: Sequence[ResultColumn] | None = None,
    overwrite: bool = False,
    form: str | None = None,
    reasons: Counter[str] | None = None,
) -> int:
    """Write rows to `out`, whose ending names the format; return the number of rows.

    `csv`, `parquet` and `npz` hold rows. Every format of structures that can be written (`structures.formats`) holds
    the structures of the rows, read from the screened input, with their results as labels.

    rows : arrays of rows (dtype `ROW`), written in their order; None writes all rows in input order.
    texts : further columns, one text for each row (not every format of structures has a place for them).
    columns : columns beside `rows.npy`; None takes all of `find_columns`: ids and formulas, what the input carries,
        what is computed. A text `id` takes the place of that of the rows.
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
    more = More(texts or {}, find_columns(results, texts or {}) if columns is None else list(columns))
    with output_errors(path):
        table = TABLES.get(_ending(path)) if form is None else None
        if table is None:
            return _write_structures(results, path, chosen, more, WriteOptions((), overwrite), form, reasons)
        with atomic_draft(path, durable=False) as draft:
            return table(results, draft, chosen, more)


@dataclass(frozen=True)
class More:
    """What is written beside the columns of the rows.

    Attributes
    ----------
    texts : by name, a text for each row. columns : read for each batch of rows.
    """

    texts: Texts
    columns: list[ResultColumn]

    @property
    def text_ids(self) -> bool:
        """Whether ids are texts."""
        return any(column.name == ID for column in self.columns)

    @property
    def beside(self) -> list[ResultColumn]:
        """The columns without the ids."""
        return [column for column in self.columns if column.name != ID]

    def read(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the values of the columns by name."""
        return {column.name: column.values(rows) for column in self.columns}


def find_columns(results: Results, texts: Texts) -> list[ResultColumn]:
    """Return the columns beside `rows.npy` that can be read; where their input is gone or changed, a line is logged.

    Those of `texts` are left out, and the chemical system, which stands in every formula.
    """
    kept, first = list[ResultColumn](), blank_rows(1)
    for name, column in list_columns_beside(results).items():
        if name in texts or name == "chemsys":
            continue
        try:
            column.values(first)
            kept.append(column)
        except AtomSieveError as error:
            log.warning("without the column %s: %s", column.name, error)
    return kept


# -- tables of rows ------------------------------------------------------------------------------------------------


def _write_csv(results: Results, path: Path, chosen: Rows, more: More) -> int:
    n = 0
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        own_headings, headings = (
            [f"{name} [{unit}]" if unit else name for name, unit in pairs]
            for pairs in ([(c.name, c.unit) for c in COLUMNS.values()], [(c.name, c.unit) for c in more.beside])
        )
        out.writerow([*own_headings, *more.texts, *headings])
        texts = {name: [protect_text(text) for text in said] for name, said in more.texts.items()}
        for rows in chosen:
            found = more.read(rows)
            own = {name: [results.labels.text(name, value) for value in rows[name]] for name in COLUMNS}
            if more.text_ids:
                own[ID] = [protect_text(text) for text in found[ID]]
            beside = [_format_texts(column, found[column.name]) for column in more.beside]
            out.writerows(zip(*own.values(), *texts.values(), *beside, strict=True))
            n += len(rows)
    return n


def _format_texts(column: ResultColumn, values: NDArray[Any]) -> list[str]:
    texts = format_column(column, values)
    return texts if column.kind != "text" else [protect_text(text) for text in texts]


def _write_npz(results: Results, path: Path, chosen: Rows, more: More) -> int:
    rows = np.concatenate([np.asarray(r) for r in chosen])
    names = {
        "heads": np.array(results.labels.heads),
        "precisions": np.array(results.labels.precisions),
        "status_codes": np.array(list(results.labels.statuses)),
        "status_names": np.array(list(results.labels.statuses.values())),
    }
    arrays: dict[str, Any] = {name: rows[name] for name in COLUMNS}
    beside = {name: _to_fixed_width(name, values) for name, values in more.read(rows).items()}
    np.savez(path, **{**arrays, **names, **{name: np.array(said) for name, said in more.texts.items()}, **beside})
    return len(rows)


def _to_fixed_width(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return texts as an array of the width of the longest, which NPZ needs; refuse one that is far too large."""
    if values.dtype != object:
        return values
    width = max(map(len, values), default=0)
    if 4 * width * len(values) > LARGEST_NPZ:
        raise UsageError(
            f"the longest text of {name!r} has {width:,} characters, and .npz gives {len(values):,} rows as many; "
            "write .parquet or .csv, or fewer rows"
        )
    return values.astype(str)


def _write_parquet(results: Results, path: Path, chosen: Rows, more: More) -> int:
    pa = require("pyarrow", "data", "writing Parquet")
    parquet = require("pyarrow.parquet", "data", "writing Parquet")
    names = {
        "head": pa.array(results.labels.heads),
        "precision": pa.array(results.labels.precisions),
        "status": pa.array([results.labels.status(code) for code in range(256)]),
    }
    types = {"text": pa.string(), "flag": pa.bool_(), "number": pa.float64()}

    def column(name: str, rows: NDArray[Any]) -> Any:
        if name in names:
            return pa.DictionaryArray.from_arrays(pa.array(rows[name].astype(np.int16)), names[name])
        return pa.array(np.ascontiguousarray(rows[name]))

    def field(c: Any, type_: Any) -> Any:
        return pa.field(c.name, type_, metadata={"unit": c.unit, "doc": c.doc})

    ids = next((c for c in more.columns if c.name == ID), None)
    known = [
        field(ids, pa.string()) if ids is not None and c.name == ID else field(c, column(c.name, blank_rows(0)).type)
        for c in COLUMNS.values()
    ]
    schema = pa.schema(
        [
            *known,
            *(pa.field(name, pa.string()) for name in more.texts),
            *(field(c, types[c.kind]) for c in more.beside),
        ]
    )
    n = 0
    with parquet.ParquetWriter(path, schema) as out:
        for rows in chosen:
            found = more.read(rows)
            own = [
                pa.array(found[ID], pa.string()) if ids is not None and name == ID else column(name, rows)
                for name in COLUMNS
            ]
            texts = [pa.array(said, pa.string()) for said in more.texts.values()]
            beside = [pa.array(found[c.name], types[c.kind], from_pandas=True) for c in more.beside]
            out.write_table(pa.Table.from_arrays([*own, *texts, *beside], schema=schema))
            n += len(rows)
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
    more: More,
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
                sink.write(batch, _info(results, rows, more))
            else:
                carried = _list_values(more, rows) if row is None or row.carries else None
                sink.write(batch.replace(head=rows["head"].astype(np.int32)), carried)
            n += len(rows)
    if reasons is not None:
        reasons.update(sink.reasons)
    return n - sink.skipped


def _info(results: Results, rows: NDArray[Any], more: More) -> list[dict[str, Any]]:
    """Return the columns of each row by name, without those that the structure has already."""
    names = [name for name in COLUMNS if name not in ("energy", "natoms")]
    out = []
    for k, (row, beside) in enumerate(zip(rows, _list_values(more, rows), strict=True)):
        info: dict[str, Any] = {name: column[k] for name, column in more.texts.items()}
        info |= {name: row[name].item() for name in names}
        # In extended XYZ a key without a value would swallow the next one when the file is read.
        info |= {name: results.labels.text(name, row[name]) or NO_REASON for name in CODED}
        out.append(info | beside)
    return out


def _list_values(more: More, rows: NDArray[Any]) -> list[dict[str, Any]]:
    """Return the values of the columns beside the rows of each row by name, without missing ones; ids always."""
    found = {name: values.tolist() for name, values in more.read(rows).items()}
    whole = {c.name for c in more.columns if c.kind == "number"}
    return [
        {
            name: int(values[k])
            if name in whole and values[k] == values[k] // 1 and abs(values[k]) < 2**53
            else values[k]
            for name, values in found.items()
            if name == ID or (values[k] != "" and values[k] == values[k])
        }
        for k in range(len(rows))
    ]


TABLES: dict[str, Callable[[Results, Path, Rows, More], int]] = {
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
