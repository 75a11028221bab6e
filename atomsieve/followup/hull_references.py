"""Reference entries of a convex hull: compositions and energies, all from one ensemble and one head.

References come from results folders of the ensemble and head that screened the candidates, or are structures in files,
which are computed now with that ensemble and head. Other energies, such as labels in files, are never used: the zero
points of different methods, and of different heads, are not comparable.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.followup.ensemble import find_ensemble
from atomsieve.predict.status import Status
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.record import Results, open_results, require_complete
from atomsieve.screen.results.screened_input import open_screened_input, read_at, read_numbers_at
from atomsieve.screen.selection.groups import count_elements
from atomsieve.structures import StructureReader
from atomsieve.structures.batch import ragged_index

log = logging.getLogger(__name__)

AUTO = "auto"
"""The head that mixes others by composition: its energies of two compositions may mix levels of theory."""


@dataclass(frozen=True)
class Entries:
    """Compositions with energies, n of them.

    Attributes
    ----------
    energy : [n] eV/atom.
    structure, element, count : [P] the atoms of each element in each entry, sorted by the first two.
    usable : [n] neutral and not empty: charged cells have no place on a hull.
    """

    energy: NDArray[np.float64]
    structure: NDArray[np.int64]
    element: NDArray[np.int64]
    count: NDArray[np.int64]
    usable: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.energy)

    def content(self, chosen: NDArray[np.int64], elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the atoms [c,d] of each of the sorted `elements [d]` in the entries `chosen [c]`."""
        starts, stops = (np.searchsorted(self.structure, chosen, side) for side in ("left", "right"))
        here = ragged_index(starts, stops - starts)
        column = np.searchsorted(elements, self.element[here])
        inside = elements[np.minimum(column, len(elements) - 1)] == self.element[here]
        found = np.zeros((len(chosen), len(elements)), np.int64)
        owner = np.repeat(np.arange(len(chosen)), stops - starts)
        found[owner[inside], column[inside]] = self.count[here][inside]
        return found

    def masks(self) -> NDArray[np.uint64]:
        """Return which elements are in each entry, one bit each, [n,4]."""
        found = np.zeros((len(self), 4), np.uint64)
        bits = np.uint64(1) << (self.element % 64).astype(np.uint64)
        np.bitwise_or.at(found, (self.structure, self.element // 64), bits)
        return found


def join_entries(parts: Sequence[Entries]) -> Entries:
    """Return several sets of entries as one, in order."""
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    return Entries(
        np.concatenate([part.energy for part in parts]),
        np.concatenate([part.structure + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.element for part in parts]),
        np.concatenate([part.count for part in parts]),
        np.concatenate([part.usable for part in parts]),
    )


def make_entries(reader: StructureReader, rows: NDArray[Any]) -> Entries:
    """Return the entries of rows with results, in their order."""
    positions, place = np.unique(rows["position"], return_inverse=True)
    if len(positions) != len(rows):
        raise UsageError("entries of a hull are of one head; name it with --head")
    order = np.argsort(place.reshape(-1), kind="stable")  # the row at each sorted position
    ptr, numbers = read_numbers_at(reader, positions)
    structure, element, count = count_elements(ptr, numbers)
    usable = np.diff(ptr) > 0
    if "charge" in reader.fields:
        charge = read_at(reader, positions, ("charge",)).charge
        usable &= True if charge is None else ~(np.nan_to_num(charge) != 0)
    by_row = np.argsort(order[structure], kind="stable")
    back = np.empty(len(rows), bool)
    back[order] = usable
    return Entries(
        rows["energy_per_atom"].astype(np.float64), order[structure][by_row], element[by_row], count[by_row], back
    )


@dataclass(frozen=True)
class HullReferences:
    """Reference entries and their origin.

    Attributes
    ----------
    entries : all references with a result.
    failed : references without one.
    outside : references with a result outside of the domain of the head.
    precisions : in which they were computed.
    """

    entries: Entries
    failed: int
    outside: int
    precisions: frozenset[str]


def gather_references(
    results: Results, head: str, precision: str, paths: Sequence[Path], ensemble: Path | None = None
) -> HullReferences:
    """Return the references in `paths` for candidates of `results` with this head.

    precision : in which structures are computed now. ensemble : the folder of the ensemble, if it was moved.

    Raises
    ------
    UsageError
        if a results folder is of another ensemble or has no such head; AtomSieveError if one is not complete.
    """
    if head == AUTO:
        raise UsageError(
            "the head auto mixes levels of theory by composition, so energies of different compositions make no hull; "
            "screen with the name of one head"
        )
    if not paths:
        raise UsageError("--references is needed: structures, or results of the same ensemble and head")
    for path in paths:
        _require_structures(path)
    parts, failed, outside, precisions = [], 0, 0, set()
    for path in paths:
        with _open_references(results, head, precision, path, ensemble) as found:
            rows = np.concatenate([_take_head(found, part, head) for part in found.iter_rows()])
            good = rows[rows["status"] == Status.OK]
            failed += len(rows) - len(good)
            outside += int(np.count_nonzero(~good["in_domain"]))
            precisions |= require_all_members(found, good, "screen the references without --cascade-members")
            with open_screened_input(found) as reader:
                parts.append(make_entries(reader, good))
    return HullReferences(join_entries(parts), failed, outside, frozenset(precisions))


def _require_structures(path: Path) -> None:
    """Refuse a file whose name belongs to no format of structures."""
    from atomsieve.structures.formats import find_format, readable

    if path.is_file() and find_format(path) is None:
        raise UsageError(
            f"--references {path}: its name is of no known format of structures ({', '.join(readable())}); give "
            "structures, or the results folder of a run; `atomsieve data convert --format` makes a dataset of files "
            "with other names"
        )


def require_all_members(results: Results, rows: NDArray[Any], remedy: str) -> set[str]:
    """Return the precisions of the rows; refuse rows that only a part of the members computed.

    Their energies differ from those of all members by much more than rounding.
    """
    found = {results.labels.precisions[code] for code in np.unique(rows["precision"])}
    if partial := sorted(name for name in found if "/" in name):
        raise UsageError(
            f"some rows of {results.folder.path} are in {partial[0]}, by a part of the members; energies of a part and "
            f"of all of them make no hull: {remedy}"
        )
    return found


def _take_head(results: Results, rows: NDArray[Any], head: str) -> NDArray[Any]:
    return np.asarray(rows[rows["head"] == results.labels.heads.index(head)])


@contextmanager
def _open_references(
    results: Results, head: str, precision: str, path: Path, ensemble: Path | None
) -> Iterator[Results]:
    """Open references as results: an existing folder, or a temporary one with structures computed now."""
    if ResultsFolder(path).run.is_file():
        found = open_results(path)
        _require_same(results, found, head)
        yield found
        return
    from atomsieve.screen.run import run_screen

    folder = find_ensemble(results, ensemble, "computing references")
    with tempfile.TemporaryDirectory(prefix="atomsieve-references-") as place:
        done = run_screen(  # a file that is no dataset is converted in the temporary folder
            path,
            folder,
            ScreenOptions(head=head, precision=precision, top=0, force_spread="none"),
            out=Path(place) / "results",
        )
        for line in done.unreadable.format_lines():
            log.warning("%s", line.strip())
        yield open_results(Path(place) / "results")


def _require_same(results: Results, found: Results, head: str) -> None:
    """Refuse results that are not of the same ensemble and head."""
    own, other = (r.manifest["ensemble"]["id"] for r in (results, found))
    if own != other:
        raise UsageError(
            f"{found.folder.path} was screened by another ensemble (id {other[:12]}, the candidates by {own[:12]}); "
            "energies of two ensembles make no hull: screen the references with the ensemble of the candidates"
        )
    if head not in found.labels.heads:
        raise UsageError(
            f"{found.folder.path} has the head {', '.join(found.labels.heads)}, the candidates are of {head}; energies "
            f"of two heads make no hull: screen the references with --head {head}"
        )
    require_complete(found)
