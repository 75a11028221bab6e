"""Phonons by finite displacements: phonopy chooses the displacements and solves, the ensemble gives the forces.

A. Togo, L. Chaput, T. Tadano and I. Tanaka, J. Phys. Condens. Matter 35, 353001 (2023). Stability is judged at the
q-points that the supercell holds, where frequencies are not interpolated; those of a fine mesh are given beside them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import require
from atomsieve.properties.evaluation import Array
from atomsieve.properties.options import PropertyOptions
from atomsieve.properties.outcome import Outcome, Problem
from atomsieve.structures import StructureBatch

if TYPE_CHECKING:
    from phonopy import Phonopy

MESH_LENGTH = 50.0
"""Angstrom; density of the fine mesh, as phonopy takes it."""


def require_phonopy() -> Any:
    """Import phonopy, or say how to get it."""
    return require("phonopy", "properties", "phonons")


def face_distances(cell: Array) -> Array:
    """Return the distances [3] Angstrom between opposite faces of a cell [3,3]."""
    volume = abs(float(np.linalg.det(cell)))
    areas = np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    return np.asarray(volume / areas)


def choose_supercell(cell: Array, natoms: int, options: PropertyOptions) -> tuple[NDArray[np.int64], Outcome | None]:
    """Return the repeats [3] of the smallest diagonal supercell that is wide enough; and a problem if it is too large.

    The problem names the width that would fit.
    """
    width = face_distances(cell)
    repeats = _repeats(width, options.supercell_length)
    atoms = natoms * int(repeats.prod())
    if atoms <= options.max_supercell_atoms:
        return repeats, None
    widths = np.arange(0.5, options.supercell_length, 0.5)
    fits = [w for w in widths if natoms * _repeats(width, w).prod() <= options.max_supercell_atoms]
    remedy = f"--supercell-length {fits[-1]:g} fits, or" if fits else ""
    text = (
        f"phonons: a supercell {options.supercell_length:g} A wide ({'x'.join(map(str, repeats))}) has {atoms:,} "
        f"atoms, more than {options.max_supercell_atoms:,}; {remedy} raise --max-supercell-atoms"
    )
    return repeats, Outcome(problems=[(Problem.SUPERCELL_TOO_LARGE, " ".join(text.split()))])


def _repeats(width: Array, length: float) -> NDArray[np.int64]:
    return np.maximum(np.ceil(length / width - 1e-6), 1).astype(np.int64)


@dataclass(frozen=True)
class Displacements:
    """Displaced supercells of one structure: phonopy's object, the structures [D] of equal size, phonopy's remarks."""

    phonopy: Phonopy
    batch: StructureBatch
    remarks: list[str]


def displace(structure: StructureBatch, repeats: NDArray[np.int64], options: PropertyOptions) -> Displacements:
    """Return the displaced supercells of one structure, as few as its symmetry allows."""
    require_phonopy()
    from ase.data import chemical_symbols
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    unit = PhonopyAtoms(
        symbols=[chemical_symbols[z] for z in structure.numbers],
        cell=structure.cell[0],
        positions=np.asarray(structure.positions, np.float64),
    )
    with warnings.catch_warnings(record=True) as said:
        phonopy = Phonopy(unit, supercell_matrix=np.diag(repeats), primitive_matrix="auto", symprec=options.symprec)
        phonopy.generate_displacements(distance=options.displacement)
    cells = phonopy.supercells_with_displacements or []
    size, many = len(phonopy.supercell), len(cells)
    copies = np.float32(repeats.prod())
    charges: dict[str, Any] = {}
    if structure.charge is not None:
        charges["charge"] = np.repeat(structure.charge * copies, many)
    if structure.spin is not None:  # the unpaired electrons of all cells, parallel
        charges["spin"] = np.repeat(1 + (structure.spin - 1) * copies, many)
    batch = StructureBatch(
        ptr=np.arange(many + 1, dtype=np.int64) * size,
        numbers=np.concatenate([np.asarray(c.numbers, np.uint8) for c in cells]),
        positions=np.concatenate([c.positions for c in cells]),
        cell=np.array([c.cell for c in cells], np.float64),
        pbc=np.ones((many, 3), bool),
        id=np.repeat(structure.id, many),
        **charges,
    )
    return Displacements(phonopy, batch, _list_remarks(said))


def find_phonons(displaced: Displacements, forces: Array, members: Array, options: PropertyOptions) -> Outcome:
    """Return the phonons of one structure, of forces [D,n,3] eV/Angstrom of its supercells and of members [K,D,n,3]."""
    out, phonopy = Outcome(), displaced.phonopy
    with warnings.catch_warnings(record=True) as said:
        mean = _solve(phonopy, forces)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean was told the same
        found = [_solve(phonopy, f).summary for f in members if np.isfinite(f).all()]
    each = np.array(found).reshape(-1, len(_Spectrum.NAMES))
    for k, name in enumerate(_Spectrum.NAMES):
        out.add_number(name, mean.summary[k], each[:, k])
    lowest = each[:, _Spectrum.NAMES.index("min_frequency")]
    if np.isfinite(mean.summary[0]):
        out.add_verdict("dynamically_stable", mean.summary[0] >= -options.imaginary, lowest >= -options.imaginary)
    else:
        text = "phonons: the supercell holds no mode but translations; give a larger --supercell-length"
        out.problems.append((Problem.METHOD_FAILED, text))
    out.values |= {
        "imaginary_modes": int((mean.frequencies < -options.imaginary).sum()),
        "modes": int(mean.frequencies.size),
        "supercell": "x".join(str(int(n)) for n in np.diag(phonopy.supercell_matrix)),
        "supercell_atoms": len(phonopy.supercell),
        "displacements": len(forces),
    }
    out.details["phonons"] = {
        "primitive_atoms": len(phonopy.primitive),
        "q_points": mean.points.tolist(),
        "frequencies": mean.frequencies.tolist(),
        "unit": "THz; imaginary ones are negative",
        "remarks": list(dict.fromkeys([*displaced.remarks, *_list_remarks(said)])),
    }
    return out


def _list_remarks(said: list[warnings.WarningMessage]) -> list[str]:
    """Return the warnings of phonopy, each as one line."""
    return [" ".join(str(one.message).split()) for one in said]


@dataclass(frozen=True)
class _Spectrum:
    """Frequencies [Q,B] THz at the q-points [Q,3] that the supercell holds, and the numbers of `NAMES`."""

    points: Array
    frequencies: Array
    summary: list[float]

    NAMES = ("min_frequency", "min_frequency_mesh", "max_frequency", "zero_point_energy")


def _solve(phonopy: Phonopy, forces: Array) -> _Spectrum:
    """Return the spectrum that follows from forces [D,n,3]."""
    from ase import units
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

    phonopy.forces = forces
    phonopy.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    phonopy.symmetrize_force_constants(show_drift=False)
    inside = np.rint(np.linalg.inv(phonopy.primitive_matrix) @ phonopy.supercell_matrix).astype(np.int64)
    points = get_commensurate_points(inside)
    phonopy.run_qpoints(points)
    inside_cell: Any = phonopy.qpoints
    frequencies = np.array(inside_cell.frequencies)
    phonopy.run_mesh(MESH_LENGTH)
    mesh: Any = phonopy.mesh
    of_mesh, weights = np.array(mesh.frequencies), np.array(mesh.weights, np.float64)
    # sum of h nu / 2 over real modes; imaginary ones have no zero-point energy
    quanta = np.maximum(of_mesh, 0).sum(1) @ weights / weights.sum() * 1e12 * units._hplanck / units._e
    optical, finer = _drop_acoustic(points, frequencies), _drop_acoustic(mesh.qpoints, of_mesh)
    lowest = float(optical.min()) if optical.size else float("nan")
    lowest_of_mesh = float(min(lowest, finer.min(initial=np.inf)))
    numbers = [lowest, lowest_of_mesh, float(frequencies.max()), 0.5 * float(quanta) / len(phonopy.primitive)]
    return _Spectrum(points, frequencies, numbers)


def _drop_acoustic(points: Array, frequencies: Array) -> Array:
    """Return the frequencies [M] without the three at Gamma that are closest to zero: translations."""
    kept = np.ones(frequencies.shape, bool)
    for q in np.flatnonzero(np.abs(np.asarray(points)).max(1) < 1e-8):
        kept[q, np.argsort(np.abs(frequencies[q]))[:3]] = False
    return np.asarray(frequencies[kept])
