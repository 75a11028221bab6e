"""The folder of a relaxation: names of its files, its settings, and the files made from finished groups.

    relaxed/
      relax.json         settings: input, ensemble, options, selection
      relaxed.csv        one line for each structure, in the order of the selection
      relaxed.extxyz     the relaxed structures with energy, forces, stress, reason of the stop, steps
      relaxed.bp         the same structures and labels as a dataset
      summary.json       counts and rates
      run.log.jsonl      events with their time
      groups/NNNNN.npz   a finished group; NNNNN.state.npz an interrupted one
      trajectories/      <position>.extxyz, if asked for
      lock.json          while it is active

All but summary and log have the same bytes for any number of ranks, and after an interruption.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.relax_result import Stop
from atomsieve.errors import DataError
from atomsieve.followup.dedup import Tolerances, find_different
from atomsieve.followup.relax.group import Arrays, read_arrays
from atomsieve.followup.relax.outcome import GROUPS, PREFIX, VALUES, measure_outcome
from atomsieve.followup.relax.stability import PREFIX as OF_STABILITY
from atomsieve.predict import Status
from atomsieve.runs.output_files import atomic_draft, disk_errors
from atomsieve.runs.output_folder import RecordedFolder
from atomsieve.screen.results.code_names import CodeNames
from atomsieve.screen.results.formulas import hill_formula
from atomsieve.stability.columns import COLUMNS as STABILITY
from atomsieve.structures import SourceInfo, StructureBatch, StructureWriter
from atomsieve.structures.carried import tabulate_rows

FORMAT = 1
COLUMNS: dict[str, tuple[str, str]] = {
    "rank": ("", "place in the selection, from 1"),
    "position": ("", "place of the structure in the input, from 0"),
    "id": ("", "id of the structure in the input"),
    "formula": ("", "Hill order"),
    "natoms": ("", "number of atoms"),
    "reason": ("", "why it is no longer relaxed"),
    "status": ("", "OK, or why there is no result"),
    "steps": ("", "steps taken"),
    "energy": ("eV", "total energy now, mean over the members"),
    "energy_per_atom": ("eV/atom", "energy / natoms"),
    "energy_before": ("eV", "total energy that the screening found"),
    "max_force": ("eV/Angstrom", "what is compared with fmax: the largest force, or with the cell virial row per atom"),
    "energy_std": ("eV", "spread of the total energy over the members"),
    "sigma_energy": ("eV", "calibrated standard error of the energy; empty if uncalibrated"),
    "distance": ("", "distance in feature space from the training data; the limit is 1"),
    "in_domain": ("", "the structure is like the head's training data"),
    "outside": ("", "reasons against it, joined by +"),
    "moved": ("Angstrom", "largest displacement of an atom, beyond the deformation of its cell"),
    "volume": ("Angstrom^3", "of the cell now"),
    "volume_before": ("Angstrom^3", "of the cell in the input"),
    "guard": ("", "what the guard found"),
    "passed": ("", "limits on the change of the structure that it passed, with the values"),
    "volume_ratio": ("", "volume over volume_before"),
    "strain": ("", "largest logarithmic strain of the cell's shape, its volume left out"),
    "bonds_kept": ("", "share of the bonds before that are still there"),
    "bonds_formed": ("", "bonds between atoms that were far apart, over the bonds before"),
    "coordination_before": ("", "mean number of bonds of an atom in the input"),
    "coordination": ("", "mean number of bonds of an atom now"),
    "contact_before": ("", "shortest distance in the input, over the sum of covalent radii"),
    "contact": ("", "shortest distance now, over the sum of covalent radii"),
    "fragments_before": ("", "groups of bonded atoms in the input"),
    "fragments": ("", "groups of bonded atoms now"),
    "gap_before": ("Angstrom", "thickest empty layer parallel to a face of the cell in the input"),
    "gap": ("Angstrom", "thickest empty layer parallel to a face of the cell now"),
    "space_group_before": ("", "of the input, within 0.1 Angstrom"),
    "space_group": ("", "now, within 0.1 Angstrom"),
    "duplicate_of": ("", "rank of the structure of lower energy per atom that it became the same as"),
}
"""Columns of relaxed.csv: unit and meaning."""


@dataclass(frozen=True)
class RelaxFolder(RecordedFolder):
    """Names inside a folder of relaxed structures."""

    contents = "relaxed structures"
    record_name = "relax.json"
    version = FORMAT
    compared = ("input", "ensemble", "references", "options", "batches", "selection")

    table = property(lambda self: self.path / "relaxed.csv")
    extxyz = property(lambda self: self.path / "relaxed.extxyz")
    dataset = property(lambda self: self.path / "relaxed.bp")
    summary = property(lambda self: self.path / "summary.json")
    log = property(lambda self: self.path / "run.log.jsonl")
    groups = property(lambda self: self.path / "groups")
    trajectories = property(lambda self: self.path / "trajectories")

    def group(self, number: int) -> Path:
        """Return the file of a finished group."""
        return Path(self.groups / f"{number:05d}.npz")

    def state(self, number: int) -> Path:
        """Return the state of an interrupted group."""
        return Path(self.groups / f"{number:05d}.state.npz")

    def list_files(self) -> list[Path]:
        """Return the files of a relaxation, relax.json last."""
        return [self.table, self.extxyz, self.summary, self.log, self.record]

    def list_folders(self) -> list[Path]:
        """Return the folders of a relaxation."""
        return [self.groups, self.trajectories, self.dataset]

    def settle(self, wanted: dict[str, Any], *, overwrite: bool) -> None:
        """Begin a relaxation, or continue the one in the folder.

        Raises
        ------
        AtomSieveError
            if an earlier relaxation had other settings: the message names every difference. If there are results
            without settings.
        """
        left = [p for p in (*self.list_folders(), *self.list_files()) if p.exists() and not _empty(p)]
        self.begin_or_continue(wanted, left, overwrite=overwrite)
        with disk_errors(self.path):
            self.groups.mkdir(exist_ok=True)


def _empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def digest_rows(rows: NDArray[Any]) -> str:
    """Return the SHA-256 that identifies a selection of rows."""
    whole = hashlib.sha256()
    for name in ("position", "head"):
        whole.update(np.ascontiguousarray(rows[name]).tobytes())
    return whole.hexdigest()


# -- files made from finished groups -------------------------------------------------------------------------------


def read_group(folder: RelaxFolder, number: int) -> Arrays:
    """Return the arrays of a finished group.

    Raises
    ------
    DataError
        if its file is missing or damaged, though it was readable when the relaxation began.
    """
    arrays = read_arrays(folder.group(number))
    if arrays is None:
        raise DataError(f"{folder.group(number)} is gone or damaged; run the same command again to compute it anew")
    return arrays


def load_group(folder: RelaxFolder, number: int) -> tuple[StructureBatch, Arrays]:
    """Return the structures of a finished group, labelled where they have a result, and the arrays of the group."""
    arrays = read_group(folder, number)
    fields = {name.removeprefix("batch."): array for name, array in arrays.items() if name.startswith("batch.")}
    energy, forces, stress = arrays["energy"], arrays["forces"], arrays.get("stress")
    batch = StructureBatch(**fields)
    known = (arrays["status"] == Status.OK) & np.isfinite(energy)
    labels: dict[str, Any] = {"energy": energy, "forces": forces, "has_energy": known, "has_forces": known}
    if stress is not None:
        labels |= {"stress": stress, "has_stress": known & np.isfinite(stress).all((1, 2))}
    return batch.replace(**labels), arrays


def iter_lines(
    batch: StructureBatch,
    arrays: Arrays,
    rows: NDArray[Any],
    first: int,
    labels: CodeNames,
    twins: Mapping[int, int],
    ids: Sequence[int | str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the table row of each structure of a group, by `COLUMNS`, then of stability where the head has references.

    first : rank of the first structure. twins : rank of the better structure that is the same, by rank. ids : of the
    rows; None takes their integers.
    """
    stability = [name for name in STABILITY if OF_STABILITY + name in arrays]
    volume = np.abs(np.linalg.det(batch.cell))
    for s, row in enumerate(rows):
        status, outside = Status(int(arrays["status"][s])), int(arrays["outside"][s])
        own = batch.numbers[batch.ptr[s] : batch.ptr[s + 1]]
        yield {
            "rank": first + s,
            "position": int(row["position"]),
            "id": int(row["id"]) if ids is None else ids[s],
            "formula": hill_formula(own),
            "natoms": len(own),
            "reason": Stop(int(arrays["reason"][s])).name,
            "status": status.name,
            "steps": int(arrays["steps"][s]),
            "energy": float(arrays["energy"][s]),
            "energy_per_atom": float(arrays["energy"][s]) / max(len(own), 1),
            "energy_before": float(row["energy"]),
            "max_force": float(arrays["max_force"][s]),
            "energy_std": float(arrays["energy_std"][s]),
            "sigma_energy": float(arrays["sigma_energy"][s]),
            "distance": float(arrays["distance"][s]),
            "in_domain": bool(status == Status.OK and outside == 0),
            "outside": labels.text("outside", outside),
            "moved": float(arrays["moved"][s]),
            "volume": float(volume[s]),
            "volume_before": float(arrays["volume_before"][s]),
            "guard": str(arrays["said"][s]),
            "passed": str(arrays["passed"][s]) if "passed" in arrays else "",
            **{name: float(arrays[PREFIX + name][s]) for name in VALUES},
            **{name: str(arrays[PREFIX + name][s]) for name in GROUPS},
            "duplicate_of": str(twins.get(first + s, "")),
            **{name: float(arrays[OF_STABILITY + name][s]) for name in stability},
        }


def find_twins(folder: RelaxFolder, bounds: NDArray[np.int64]) -> dict[int, int]:
    """Return the ranks of converged structures that match one of lower energy per atom, and the rank of that one.

    Structures are compared as by `screen dedup`, with its usual tolerances.
    """
    batches, energies, ranks = [], [], []
    for g, first in enumerate(bounds[:-1].tolist()):
        batch, arrays = load_group(folder, g)
        own = np.flatnonzero(arrays["reason"] == Stop.CONVERGED)
        batches.append(batch.take(own))
        energies.append(arrays["energy"][own] / np.maximum(batch.counts[own], 1))
        ranks.append(own + first + 1)
    energy, rank = np.concatenate(energies), np.concatenate(ranks)
    order = np.lexsort((rank, energy))
    twin = find_different(StructureBatch.concatenate(batches).take(order), energy[order], Tolerances()).twin
    return {int(rank[order[k]]): int(rank[order[t]]) for k, t in enumerate(twin.tolist()) if t != k}


def publish(
    folder: RelaxFolder,
    bounds: NDArray[np.int64],
    rows: NDArray[Any],
    labels: CodeNames,
    about: str,
    read: Callable[[NDArray[Any]], StructureBatch],
    ids: Sequence[int | str] | None = None,
) -> None:
    """Write the three files of all groups, group after group; the table last: it marks the result as complete.

    bounds : [G+1], group g has the rows `bounds[g]:bounds[g+1]`. about : where the labels come from. read : gives the
    structures of rows as they were; called for groups that an older version finished, without what happened to them.
    ids : of the rows; texts stand in the structures, too.
    """
    from ase.io.extxyz import write_extxyz

    head = labels.heads[int(rows["head"][0])]
    twins = find_twins(folder, bounds)
    told = read_group(folder, 0)
    columns = COLUMNS | {name: about for name, about in STABILITY.items() if OF_STABILITY + name in told}
    # Left in the reverse order: the dataset is finished first, the table, which shows that all is there, last.
    with (
        disk_errors(folder.path),
        atomic_draft(folder.table, durable=False) as table_draft,
        atomic_draft(folder.extxyz, durable=False) as extxyz_draft,
        open(extxyz_draft, "w") as frames,
        open(table_draft, "w", newline="") as file,
        StructureWriter(folder.dataset, sources=[SourceInfo(head, about)], overwrite=True) as dataset,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow([f"{name} [{unit}]" if unit else name for name, (unit, _) in columns.items()])
        for g, first in enumerate(bounds[:-1].tolist()):
            batch, arrays = load_group(folder, g)
            own = rows[first : bounds[g + 1]]
            if PREFIX + VALUES[0] not in arrays:
                arrays |= measure_outcome(read(own), batch, arrays["energy"])
            names = None if ids is None else ids[first : bounds[g + 1]]
            said = list(iter_lines(batch, arrays, own, first + 1, labels, twins, names))
            table.writerows([_text(value) for value in line.values()] for line in said)
            images = batch.to_ase()
            for atoms, line in zip(images, said, strict=True):
                atoms.info |= {name: line[name] for name in ("rank", "position", "reason", "status", "steps")}
                atoms.info |= {"id": line["id"]} if isinstance(line["id"], str) and line["id"] else {}
            write_extxyz(frames, images)
            texts = [{"id": name} for name in names or () if isinstance(name, str)]
            dataset.append(batch.replace(head=np.zeros(len(batch), np.int32)), tabulate_rows(texts) if texts else None)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.10g}"
    return str(value)
