"""Input of CP2K by pymatgen's input sets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from atomsieve.followup.inputs.recipe import Code, Job, NotWritten, count_k_points
from atomsieve.structures.level_of_theory import Level

FUNCTIONALS: dict[str, list[str]] = {
    "LDA": ["LDA"],
    "PBE": ["PBE"],
    "PBEsol": ["GGA_X_PBE_SOL", "GGA_C_PBE_SOL"],
    "RPBE": ["GGA_X_RPBE", "GGA_C_PBE"],
    "revPBE": ["GGA_X_PBE_R", "GGA_C_PBE"],
    "AM05": ["GGA_X_AM05", "GGA_C_AM05"],
    "BLYP": ["BLYP"],
    "TPSS": ["TPSS"],
    "SCAN": ["SCAN"],
    "r2SCAN": ["R2SCAN"],
}
"""Sections of CP2K, those of libxc where CP2K has none of its own."""
POTENTIALS = {"LDA": "GTH-PADE", "BLYP": "GTH-BLYP"}
"""Where they are not those of PBE."""
BASIS = "DZVP-MOLOPT-SR-GTH"
CUTOFF = 600
"""Rydberg."""
SPACING = 0.22
"""1/Angstrom, of k-points, with 2 pi."""


def name_set(level: Level, task: str) -> str:
    """Return the name of pymatgen's input set, for a crystal."""
    return "CellOptSet" if task == "relax" else "StaticSet"


def write(job: Job, folder: Path) -> list[str]:
    """Write cp2k.inp."""
    from pymatgen.io.cp2k import sets
    from pymatgen.io.vasp.inputs import Kpoints

    if job.level.dispersion is not None:
        raise NotWritten(f"dispersion {job.level.dispersion} has no place in these inputs")
    functional, remarks = str(job.level.functional), []
    potential = POTENTIALS.get(functional, "GTH-PBE")
    remarks.append(f"basis {BASIS} and potentials {potential} of CP2K's data files, cutoff {CUTOFF} Ry")
    if functional not in ("PBE", *POTENTIALS):
        remarks.append(f"the potentials are those of PBE, not of {functional}")
    if job.level.hubbard:
        remarks.append(
            "the level has a Hubbard U for some elements: cp2k.inp has none, since its values belong to a code"
        )
    symbols = sorted({str(site.specie.symbol) for site in job.structure})
    choice: dict[str, Any] = {s: {"basis": BASIS, "potential": potential} for s in symbols}
    choice |= {"basis_filenames": ["BASIS_MOLOPT"], "potential_filename": "GTH_POTENTIALS"}
    structure: Any = job.structure.copy()
    crystal = isinstance(structure, Structure)
    more: dict[str, Any] = {}
    if crystal:
        structure.set_charge(job.whole_charge)
        divisions = count_k_points(np.asarray(structure.lattice.matrix), job.pbc, SPACING)
        more = {"kpoints": Kpoints.gamma_automatic(divisions), "ot": False, "smearing": True}
    else:
        structure.set_charge_and_spin(job.whole_charge, None if job.multiplicity is None else round(job.multiplicity))
    if not crystal or not job.pbc.all():
        kind = "RelaxSet" if job.task == "relax" else "StaticSet"
    else:
        kind = name_set(job.level, job.task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(sets, kind)(
            structure=structure,
            project_name=folder.name,
            xc_functionals=FUNCTIONALS[functional],
            cutoff=CUTOFF,
            basis_and_potential=choice,
            multiplicity=0 if job.multiplicity is None else round(job.multiplicity),
            **more,
        )
        made.write_file(str(folder / "cp2k.inp"))
    return remarks


CP2K = Code("CP2K", tuple(FUNCTIONALS), write, name_set)
