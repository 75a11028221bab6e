"""Input folders of chosen rows, and a table of them.

OUT/0001_NaCl_mp-22862/   the input of one structure: rank, reduced formula, id
OUT/inputs.csv            one line for each structure: folder, level of theory, charge, multiplicity, remarks
"""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError, unknown
from atomsieve.followup.inputs.recipe import TASKS, Code, Job, NotWritten
from atomsieve.gfm import read_manifest
from atomsieve.runs.output_files import atomic_folder, output_errors
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.table import list_columns
from atomsieve.screen.selection.select import resolve_head
from atomsieve.structures import StructureBatch
from atomsieve.structures.level_of_theory import FUNCTIONALS, Level, read_level

CODES = ("vasp", "qe", "cp2k")
"""Names of the codes, as `--for` takes them."""
COLUMNS = (
    "folder",
    "position",
    "id",
    "formula",
    "natoms",
    "charge",
    "multiplicity",
    "level_of_theory",
    "functional",
    "input_set",
    "remarks",
)
MARK = "inputs.csv"
"""The file by which a folder of inputs is known."""


@dataclass(frozen=True)
class WrittenInputs:
    """Input folders that were written.

    Attributes
    ----------
    folders : their number. level : of theory. input_set : name. skipped : reasons why structures have none, counted.
    remarks : what the files do not hold, counted.
    """

    folders: int
    level: Level
    input_set: str
    skipped: Counter[str]
    remarks: Counter[str]


def open_code(name: str) -> Code:
    """Return a code by its name; pymatgen or ASE is imported for it."""
    if name == "vasp":
        from atomsieve.followup.inputs.vasp import VASP

        return VASP
    if name == "qe":
        from atomsieve.followup.inputs.espresso import ESPRESSO

        return ESPRESSO
    if name == "cp2k":
        from atomsieve.followup.inputs.cp2k import CP2K

        return CP2K
    raise unknown("code", name, CODES)


def resolve_level(results: Results, head: str, given: str | None, code: Code) -> Level:
    """Return the level of theory: the given one, else that which the ensemble states of the head.

    Raises
    ------
    UsageError
        if it names no functional, or one for which the code has no input here; the message names those that it has.
    """
    text, whose = given, "--level"
    if text is None:
        text, whose = _read_level_of_head(results, head), f"head {head}: level of theory"
    level = read_level(text)
    if level.functional is None or level.functional not in code.functionals:
        why = level.why or f"{code.title} has no input for {level.functional} here"
        known = ", ".join(name for name in FUNCTIONALS if name in code.functionals)
        raise UsageError(f"{whose} {text!r}: {why}; name one with --level, of {known} (PBE+U with the U of the set)")
    return level


def _read_level_of_head(results: Results, head: str) -> str:
    """Return the level of theory that the ensemble which screened states of a head."""
    path = results.manifest.get("ensemble_path")
    if path is not None and (Path(path) / "manifest.json").is_file():
        for spec in read_manifest(path).heads:
            if spec.name == head:
                return spec.level_of_theory
    raise UsageError(
        f"the level of theory of head {head} is not known: the ensemble that screened is not at {path}; name one with "
        "--level"
    )


def write_inputs(
    results: Results,
    out: str | Path,
    rows: NDArray[Any],
    code_name: str,
    *,
    task: str = "relax",
    level: str | None = None,
    head: str | None = None,
    overwrite: bool = False,
) -> WrittenInputs:
    """Write an input folder for each row, in their order, and `inputs.csv`, into the folder `out`.

    rows : [n] of dtype `ROW`, of one head. code_name : of `CODES`. task : of `TASKS`.
    level : of theory; None takes that of the head. head : needed where the run had several.

    Raises
    ------
    UsageError
        for an unknown name or level, rows of several heads, or no rows. AtomSieveError if `out` is there already.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    code, path, name = open_code(code_name), Path(out), resolve_head(results, head)
    if not len(rows):
        raise UsageError(f"{results.folder.path} has no row to write: none fulfils what was asked")
    if (rows["head"] != results.labels.heads.index(name)).any():
        raise UsageError(f"the rows are of several heads; choose one with --head: {', '.join(results.labels.heads)}")
    chosen = resolve_level(results, name, level, code)
    if path.exists() and not (overwrite and (path / MARK).is_file()):
        rule = "--overwrite replaces it" if (path / MARK).is_file() else "it is no folder of inputs: name another one"
        raise AtomSieveError(f"{path} is there already; {rule}")
    with open_screened_input(results) as reader:
        batch = read_at(reader, rows["position"])
    columns = list_columns(results)
    ids = [_format_id(value) for value in columns["id"].values(rows).tolist()]
    formulas = [str(value) for value in columns["reduced_formula"].values(rows).tolist()]
    skipped, remarks = Counter[str](), Counter[str]()
    lines = []
    with output_errors(path), atomic_folder(path) as draft:
        for k in range(len(rows)):
            folder = draft / name_folder(k + 1, formulas[k], ids[k])
            folder.mkdir()
            own = batch.slice(k, k + 1)
            line = _describe(own, rows[k], ids[k], str(columns["formula"].values(rows[k : k + 1])[0]), chosen)
            try:
                said = code.write(_make_job(own, chosen, task), folder)
            except NotWritten as reason:
                shutil.rmtree(folder)
                skipped[str(reason)] += 1
                lines.append(line | {"folder": "", "input_set": "", "remarks": f"not written: {reason}"})
                continue
            remarks.update(said)
            lines.append(
                line | {"folder": folder.name, "input_set": code.name_set(chosen, task), "remarks": "; ".join(said)}
            )
        with open(draft / MARK, "w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(lines)
    return WrittenInputs(len(rows) - skipped.total(), chosen, code.name_set(chosen, task), skipped, remarks)


def _format_id(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) else str(value)


def name_folder(rank: int, formula: str, name: str) -> str:
    """Return the name of a folder: rank, formula and id, of letters that every file system takes."""
    words = [re.sub(r"[^\w.+-]+", "_", word).strip("._") for word in (formula, name)]
    return "_".join([f"{rank:04d}", words[0][:60], words[1][:80]]).rstrip("_")


def _describe(structure: StructureBatch, row: Any, name: str, formula: str, level: Level) -> dict[str, Any]:
    charge, spin = _conditions(structure)
    return {
        "position": int(row["position"]),
        "id": name,
        "formula": formula,
        "natoms": structure.n_atoms,
        "charge": "" if charge is None else f"{charge:g}",
        "multiplicity": "" if spin is None else f"{spin:g}",
        "level_of_theory": level.text,
        "functional": level.functional,
    }


def _conditions(structure: StructureBatch) -> tuple[float | None, float | None]:
    """Return charge and multiplicity; None where they are not stated."""
    found = [None if v is None or np.isnan(v[0]) else float(v[0]) for v in (structure.charge, structure.spin)]
    return found[0], found[1]


def _make_job(structure: StructureBatch, level: Level, task: str) -> Job:
    """Return the calculation of one structure."""
    from pymatgen.core import Element, Lattice, Molecule, Structure

    charge, spin = _conditions(structure)
    pbc = structure.pbc[0]
    symbols = [Element.from_Z(int(z)).symbol for z in structure.numbers]
    positions = np.asarray(structure.positions, np.float64)
    if not (np.isfinite(positions).all() and np.isfinite(structure.cell).all()):
        raise NotWritten("positions or cell are not finite")
    if not len(symbols):
        raise NotWritten("it has no atoms")
    cell = structure.cell[0]
    if abs(np.linalg.det(cell)) > 1e-3:
        lattice = Lattice(cell, pbc=(bool(pbc[0]), bool(pbc[1]), bool(pbc[2])))
        made: Any = Structure(lattice, symbols, positions, coords_are_cartesian=True)
    elif pbc.any():
        raise NotWritten("its cell has no vector along a direction that is not periodic")
    else:
        made = Molecule(symbols, positions)
    return Job(made, pbc, level, task, charge, spin)
