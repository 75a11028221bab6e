"""Selection of screened structures for first-principles calculations, as training data of the next ensemble.

The most uncertain rows are candidates. Structures are chosen among them one by one, each with the largest product of
uncertainty and distance from those chosen so far (weighted farthest-point sampling; T. F. Gonzalez, Theor. Comput.
Sci. 38, 293 (1985)). Distances are Euclidean, between the structures' mean features of the first member's
encoder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError, unknown
from atomsieve.followup.ensemble import find_ensemble
from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.status import Status
from atomsieve.runs.output_files import atomic_draft, output_errors
from atomsieve.screen.results.columns import NO_REASON, ROW
from atomsieve.screen.results.formulas import hill_formula
from atomsieve.screen.results.record import Results, require_complete
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.table import read_ids
from atomsieve.screen.results.targets import check_target
from atomsieve.screen.selection.row_filter import compile_filter, require_columns
from atomsieve.screen.selection.select import resolve_head
from atomsieve.structures import StructureBatch
from atomsieve.structures.conversion.split import group_by_formula

MEASURES = ("sigma_energy", "energy_std", "sigma_force", "max_force_std", "distance")
"""Columns that can rank the candidates; those of the energy count per atom."""
PER_ATOM = ("sigma_energy", "energy_std")


@dataclass(frozen=True)
class LabelCandidates:
    """Structures to label next, in the order in which they were chosen.

    Attributes
    ----------
    rows : [n] of dtype `ROW`. structures : of the rows. score : [n] values that ranked them. by : their column.
    head, level_of_theory : the head whose rows they are.
    good, candidates : number of rows that could have been picked, and of those that were compared.
    """

    rows: NDArray[Any]
    structures: StructureBatch
    score: NDArray[np.float64]
    by: str
    head: str
    level_of_theory: str
    good: int
    candidates: int


def pick(
    results: Results,
    n: int,
    *,
    by: str | None = None,
    where: str | None = None,
    per_formula: int | None = None,
    head: str | None = None,
    candidates: int = 20,
    ensemble: str | Path | None = None,
) -> LabelCandidates:
    """Choose `n` structures worth labelling next; fewer only where `per_formula` leaves no more.

    by : column of `MEASURES`; None takes sigma_energy where the head is calibrated, else energy_std.
    where : only rows that fulfil this expression. Rows with a bad status are never picked.
    per_formula : at most so many structures of one reduced formula.
    head : whose rows; needed where the run had several.
    candidates : the most uncertain `candidates * n` rows are compared with each other.
    ensemble : folder of the ensemble that screened; None takes the path in run.json.

    Raises
    ------
    UsageError
        for a name or number that is not allowed, or `n` above the number of good rows.
    AtomSieveError
        if the run is not complete, or input or ensemble are missing; DataError if one of them changed.
    """
    for name, value in (("n", n), ("candidates", candidates), ("per-formula", per_formula)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    require_complete(results)
    head = resolve_head(results, head)
    measure = _resolve_measure(results, head, by)
    rows, score, good = most_uncertain(results, measure, head, where, n * candidates)
    if good < n:
        remedy = f"give --n {good} or less" if good else "give another --by or --where"
        asked = f"status OK, {measure} known{', --where' if where else ''}"
        raise UsageError(f"--n {n} is more than the {good:,} rows that can be picked ({asked}); {remedy}")
    predictor, level = load_screening_ensemble(results, head, ensemble)
    with open_screened_input(results) as reader:
        structures = read_at(reader, rows["position"])
    features = mean_features(predictor, structures, head)
    chosen = farthest_points(features, score, group_by_formula(structures), n, per_formula)
    return LabelCandidates(
        rows=rows[chosen],
        structures=structures.take(chosen),
        score=score[chosen],
        by=measure,
        head=head,
        level_of_theory=level,
        good=good,
        candidates=len(rows),
    )


def _resolve_measure(results: Results, head: str, by: str | None) -> str:
    """Return the column to pick by."""
    if by is not None:
        if by not in MEASURES:
            raise unknown("measure to pick by", by, MEASURES)
        return by
    number = results.labels.heads.index(head)
    for rows in results.iter_rows():
        if np.isfinite(rows["sigma_energy"][rows["head"] == number]).any():
            return "sigma_energy"
    return "energy_std"


def most_uncertain(
    results: Results, measure: str, head: str, where: str | None, most: int
) -> tuple[NDArray[Any], NDArray[np.float64], int]:
    """Return the `most` rows with the largest measure, the measure [M], and the number of rows that have one.

    Ties go to the earlier position, and the rows come in that order: largest first. Memory holds `most` rows.
    """
    number, keep = results.labels.heads.index(head), compile_filter(results, where)
    require_columns(results, [measure], where)
    kept, key, good = np.zeros(0, ROW), np.zeros(0), 0
    for rows in results.iter_rows():
        value = rows[measure].astype(np.float64)
        if measure in PER_ATOM:
            value /= np.maximum(rows["natoms"], 1)
        usable = (rows["status"] == Status.OK) & (rows["head"] == number) & np.isfinite(value)
        if keep is not None:
            usable &= keep(rows)
        good += int(usable.sum())
        kept, key = np.concatenate([kept, rows[usable]]), np.concatenate([key, value[usable]])
        order = np.lexsort((kept["position"], -key))[:most]
        kept, key = kept[order], key[order]
    return kept, key, good


def farthest_points(
    features: NDArray[np.float64],
    weight: NDArray[np.float64],
    group: NDArray[np.int64],
    n: int,
    per_group: int | None = None,
) -> NDArray[np.int64]:
    """Return the indices of up to `n` of the M points, in the order chosen.

    First comes the largest weight [M]; then always the largest weight times distance to the nearest chosen point.
    features : [M,F]. group : [M]; at most `per_group` points of one group are chosen. The first of equals wins.
    """
    free, taken = np.ones(len(weight), bool), np.zeros(group.max(initial=-1) + 1, np.int64)
    nearest = np.full(len(weight), np.inf)
    chosen: list[int] = []
    positive = np.maximum(weight, 1e-30 * max(float(weight.max(initial=0.0)), 1e-270))  # so that distance counts at 0
    while len(chosen) < n and free.any():
        merit = positive * nearest if chosen else positive
        best = int(np.argmax(np.where(free, merit, -np.inf)))
        chosen.append(best)
        free[best] = False
        taken[group[best]] += 1
        if per_group is not None and taken[group[best]] >= per_group:
            free[group == group[best]] = False
        nearest = np.minimum(nearest, np.linalg.norm(features - features[best], axis=1))
    return np.array(chosen, np.int64)


# -- structures and their features ---------------------------------------------------------------------------------


def load_screening_ensemble(results: Results, head: str, folder: str | Path | None) -> tuple[AnyPredictor, str]:
    """Return a predictor of the ensemble that screened, and the level of theory of the head."""
    from atomsieve.gfm import read_manifest
    from atomsieve.predict import Predictor

    path = find_ensemble(results, folder, "picking structures")
    heads = read_manifest(path).heads
    level = next((h.level_of_theory for h in heads if h.name == head), "a mixture of those of the heads")
    return Predictor.load(path, head=head), level


def mean_features(predictor: AnyPredictor, structures: StructureBatch, head: str) -> NDArray[np.float64]:
    """Return the features of each structure [M,F], averaged over its atoms.

    Raises
    ------
    AtomSieveError
        if the predictor gives no features, or gives none for a structure that had a result when it was screened.
    """
    if predictor.capabilities.features is None:
        raise AtomSieveError(f"the backend {predictor.backend} gives no features; pick with the native backend")
    prediction = predictor(structures, {"features"}, head)
    if (failed := np.flatnonzero(prediction.status != Status.OK)).size:
        name = Status(int(prediction.status[failed[0]])).name
        raise AtomSieveError(
            f"{len(failed):,} of {len(structures):,} structures that had a result when they were screened have none "
            f"now ({name}); screen again, or leave them out with --where"
        )
    if not len(structures):
        return np.zeros((0, predictor.capabilities.features))
    assert prediction.features is not None
    sums = np.add.reduceat(prediction.features.astype(np.float64), structures.ptr[:-1])
    return sums / structures.counts[:, None]


# -- files ---------------------------------------------------------------------------------------------------------


def write_candidates(
    picked: LabelCandidates, results: Results, out: str | Path, *, overwrite: bool = False
) -> tuple[Path, Path]:
    """Write the structures as extxyz, and a table of them as .csv; return both paths.

    No predicted energy or force is written: these are structures without labels.

    Raises
    ------
    UsageError
        if `out` does not end in .extxyz; AtomSieveError if a file is there already.
    """
    from ase.io.extxyz import write_extxyz

    path, table = check_targets(out, overwrite, results)
    lines = list(_iter_lines(picked, results))
    images = picked.structures.to_ase()
    for atoms, line in zip(images, lines, strict=True):
        atoms.calc = None
        atoms.info |= {name: value for name, value in line.items() if name not in ("natoms", "formula")}
    # The table is entered first and so replaced last: who finds it finds the structures too.
    with (
        output_errors(path),
        atomic_draft(table, durable=False) as table_draft,
        atomic_draft(path, durable=False) as draft,
    ):
        with open(draft, "w") as file:
            write_extxyz(file, images)
        with open(table_draft, "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)
    return path, table


def check_targets(out: str | Path, overwrite: bool, results: Results) -> tuple[Path, Path]:
    """Return the two files that picking writes, after checking that they can be written."""
    path = Path(out)
    if path.suffix.lower() not in (".extxyz", ".xyz"):
        raise unknown("format", path.suffix.lstrip("."), ("extxyz", "xyz"))
    for target in (path, path.with_suffix(".csv")):
        check_target(target, overwrite, results)
    return path, path.with_suffix(".csv")


def _iter_lines(picked: LabelCandidates, results: Results) -> Iterator[dict[str, Any]]:
    """Yield the table row of each picked structure; sigma and spread are of the total energy, eV."""
    batch, ids = picked.structures, read_ids(results, picked.rows)
    for k, row in enumerate(picked.rows):
        yield {
            "order": k + 1,
            "position": int(row["position"]),
            "id": ids[k],
            "formula": hill_formula(batch.numbers[batch.ptr[k] : batch.ptr[k + 1]]),
            "natoms": int(row["natoms"]),
            "head": picked.head,
            "precision": results.labels.text("precision", row["precision"]),
            "level_of_theory": picked.level_of_theory,
            "picked_by": picked.by,
            "score": float(picked.score[k]),
            "sigma": float(row["sigma_energy"]),
            "spread": float(row["energy_std"]),
            "distance": float(row["distance"]),
            "reasons": results.labels.text("outside", row["outside"]) or NO_REASON,
        }
