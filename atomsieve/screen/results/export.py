"""Results in other formats: tables of rows (csv, parquet, npz), or the structures themselves (extxyz, bp)."""

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
from atomsieve.structures import SourceInfo, StructureBatch, StructureWriter
from atomsieve.structures.batch import ragged_index

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

    `csv`, `parquet` and `npz` hold rows; `extxyz` and `bp` hold the structures of the rows, read from the input that
    was screened, with their results as labels. `top` takes the best rows, best first; `rows` are rows that were chosen
    already, in their order, and `texts` more columns of theirs (a `bp` file has no place for them); else rows come in
    input order.

    Raises
    ------
    UsageError
        if the ending is not known or the filter not allowed.
    AtomSieveError
        if `out` is there already, the results are not complete, or the input or the forces changed or are gone.
    """
    path = Path(out)
    kind = path.suffix.lstrip(".").lower()
    if kind not in WRITERS:
        raise unknown("format", kind, WRITERS)
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
        if kind == "bp":
            return _write_bp(results, path, chosen, overwrite)
        draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        try:
            n = WRITERS[kind](results, draft, chosen, {} if rows is None else texts or {})
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


def _write_extxyz(results: Results, path: Path, chosen: Rows, texts: Texts) -> int:
    from ase.io.extxyz import write_extxyz

    n = 0
    with open(path, "w") as file:
        for rows, batch in _structures(results, chosen):
            images = batch.to_ase()
            for k, (row, atoms) in enumerate(zip(rows, images, strict=True)):
                atoms.info |= {name: said[k] for name, said in texts.items()}
                for name in COLUMNS:
                    if name not in ("energy", "natoms"):
                        atoms.info[name] = row[name].item()
                        if name in ("head", "precision", "status", "outside"):
                            # A key without a value would swallow the next one when the file is read.
                            atoms.info[name] = results.labels.text(name, row[name]) or NO_REASON
            write_extxyz(file, images)
            n += len(rows)
    return n


def _write_bp(results: Results, path: Path, chosen: Rows, overwrite: bool) -> int:
    ensemble = results.manifest["ensemble"]
    about = f"predicted by ensemble {ensemble['id'][:16]}, {' or '.join(results.labels.precisions)}"
    sources = [SourceInfo(head, about) for head in results.labels.heads]
    n = 0
    with StructureWriter(path, sources=sources, overwrite=overwrite) as writer:
        for rows, batch in _structures(results, chosen):
            writer.append(batch.replace(head=rows["head"].astype(np.int32)))
            n += len(rows)
    return n


WRITERS: dict[str, Callable[[Results, Path, Rows, Texts], int]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "npz": _write_npz,
    "extxyz": _write_extxyz,
    "bp": lambda results, path, chosen, _: _write_bp(results, path, chosen, False),
}
"""Writer of each format, by the ending of the file."""
