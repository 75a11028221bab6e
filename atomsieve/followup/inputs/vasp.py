"""Input of VASP by pymatgen's input sets. POTCAR.spec names the potentials; their files are licensed, not written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from atomsieve.followup.inputs.recipe import Code, Job, NotWritten
from atomsieve.structures.level_of_theory import Level

GGA = {"LDA": "CA", "PBE": "PE", "PBEsol": "PS", "RPBE": "RP", "revPBE": "RE", "AM05": "AM"}
METAGGA = {"SCAN": "SCAN", "r2SCAN": "R2SCAN", "rSCAN": "RSCAN", "TPSS": "TPSS"}
HYBRIDS = ("HSE06", "PBE0")
DISPERSION = {"D2": 1, "D3": 12, "D4": 13, "TS": 20, "MBD": 202}
"""IVDW; D3 with the damping of Becke and Johnson."""


def name_set(level: Level, task: str) -> str:
    """Return the name of pymatgen's input set."""
    kind = "Relax" if task == "relax" else "Static"
    if level.functional in HYBRIDS:
        return "MPHSERelaxSet"
    return f"MPScan{kind}Set" if level.functional in METAGGA else f"MP{kind}Set"


def write(job: Job, folder: Path) -> list[str]:
    """Write INCAR, KPOINTS (where the set has a mesh), POSCAR and POTCAR.spec."""
    import pymatgen.io.vasp.sets as sets

    if not isinstance(job.structure, Structure):
        raise NotWritten("it has no cell, and VASP needs one")
    settings, remarks = _choose_settings(job)
    potentials: dict[str, Any] = {}
    if job.level.functional == "LDA":
        potentials["user_potcar_functional"] = "LDA_54"
        remarks.append("POTCAR.spec: take the potentials of LDA, not of PBE")
    kind = getattr(sets, name_set(job.level, job.task))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind(job.structure, user_incar_settings=settings, **potentials)
        made.write_input(str(folder), make_dir_if_not_present=False, potcar_spec=True)
    return remarks


def _choose_settings(job: Job) -> tuple[dict[str, Any], list[str]]:
    """Return INCAR settings in which the level differs from the set, and remarks."""
    level, remarks = job.level, []
    settings: dict[str, Any] = {}
    if level.functional in GGA:
        if level.functional != "PBE":
            settings["GGA"] = GGA[level.functional]
        if not level.hubbard:
            settings["LDAU"] = False
    elif level.functional in METAGGA:
        settings["METAGGA"] = METAGGA[level.functional]
    elif level.functional == "PBE0":
        settings["HFSCREEN"] = 0
    if level.functional in HYBRIDS and job.task == "static":
        settings |= {"NSW": 0, "IBRION": -1}
    if level.cutoff is not None:
        settings["ENCUT"] = level.cutoff
    if level.dispersion in DISPERSION:
        settings["IVDW"] = DISPERSION[level.dispersion]
    elif level.dispersion is not None:
        raise NotWritten(f"dispersion {level.dispersion} is not among those written: {', '.join(DISPERSION)}")
    if job.multiplicity is not None and job.multiplicity >= 1:
        settings |= {"ISPIN": 2, "NUPDOWN": round(job.multiplicity) - 1}
    if job.is_charged:
        remarks.append(
            f"charge {job.charge:+g} is not in INCAR: set NELECT to the valence electrons of the POTCAR minus "
            f"({job.charge:+g})"
        )
    if job.task == "relax" and not job.pbc.all():
        settings["ISIF"] = 2
        remarks.append("not periodic along all vectors: the cell is kept (ISIF = 2)")
    return settings, remarks


VASP = Code("VASP", (*GGA, *METAGGA, *HYBRIDS), write, name_set)
