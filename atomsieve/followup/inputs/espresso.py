"""Input of Quantum ESPRESSO's pw.x, written by ASE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from pymatgen.core import Structure

from atomsieve.followup.inputs.recipe import Code, Job, NotWritten, count_k_points
from atomsieve.structures.level_of_theory import Level

INPUT_DFT = {
    "LDA": "lda",
    "PBE": "pbe",
    "PBEsol": "pbesol",
    "RPBE": "rpbe",
    "revPBE": "revpbe",
    "BLYP": "blyp",
    "BP86": "bp",
    "SCAN": "scan",
    "TPSS": "tpss",
    "PBE0": "pbe0",
    "HSE06": "hse",
    "B3LYP": "b3lyp",
}
DISPERSION = {"D2": "grimme-d2", "D3": "grimme-d3", "TS": "ts-vdw", "MBD": "mbd_vdw", "XDM": "xdm"}
SPACING = 0.22
"""1/Angstrom, of k-points, with 2 pi."""
CUTOFFS = {"ecutwfc": 60.0, "ecutrho": 480.0}
"""Rydberg; ample for the pseudopotentials in use, but theirs to decide."""
MAGNETIC = {*range(21, 30), *range(39, 48), *range(57, 80), *range(89, 104)}
"""Atomic numbers whose atoms begin with a magnetisation where no multiplicity is stated."""


def name_set(level: Level, task: str) -> str:
    """Return the kind of calculation."""
    return "vc-relax" if task == "relax" else "scf"


def write(job: Job, folder: Path) -> list[str]:
    """Write pw.in."""
    from ase.io.espresso import write_espresso_in
    from pymatgen.io.ase import AseAtomsAdaptor

    if not isinstance(job.structure, Structure):
        raise NotWritten("it has no cell, and pw.x needs one")
    atoms = AseAtomsAdaptor.get_atoms(job.structure, msonable=False)
    symbols = list(dict.fromkeys(atoms.get_chemical_symbols()))
    whole = bool(job.pbc.all())
    system: dict[str, Any] = {
        **CUTOFFS,
        "input_dft": INPUT_DFT[str(job.level.functional)],
        "occupations": "smearing",
        "smearing": "cold",
        "degauss": 0.01,
    }
    remarks = [
        f"pw.in names pseudo/<symbol>.upf and cutoffs of {CUTOFFS['ecutwfc']:g} and {CUTOFFS['ecutrho']:g} Ry: take "
        "pseudopotentials of the functional, and their cutoffs"
    ]
    if job.level.dispersion in DISPERSION:
        system["vdw_corr"] = DISPERSION[str(job.level.dispersion)]
    elif job.level.dispersion is not None:
        raise NotWritten(f"dispersion {job.level.dispersion} is not among those written: {', '.join(DISPERSION)}")
    if job.charge is not None:
        system["tot_charge"] = float(job.charge)
    magnetic = [s for s in symbols if chemical_symbols.index(s) in MAGNETIC]
    if job.multiplicity is not None and job.multiplicity >= 1:
        system |= {"nspin": 2, "tot_magnetization": round(job.multiplicity) - 1}
    elif magnetic:
        system["nspin"] = 2
        atoms.set_initial_magnetic_moments([0.5 if s in magnetic else 0.0 for s in atoms.get_chemical_symbols()])
    if job.level.hubbard:
        remarks.append("the level has a Hubbard U for some elements: pw.in has none, since its values belong to a code")
    task = name_set(job.level, job.task) if whole or job.task == "static" else "relax"
    if task == "relax":
        remarks.append("not periodic along all vectors: the cell is kept (calculation = 'relax')")
    control = {
        "calculation": task,
        "pseudo_dir": "./pseudo",
        "outdir": "./out",
        "tprnfor": True,
        "tstress": whole,
    }
    data = {"control": control, "system": system, "electrons": {"conv_thr": 1e-9}, "ions": {}, "cell": {}}
    k_points = count_k_points(np.asarray(atoms.cell.array), job.pbc, SPACING)
    with open(folder / "pw.in", "w") as file:
        write_espresso_in(
            file, atoms, input_data=data, pseudopotentials={s: f"{s}.upf" for s in symbols}, kpts=k_points
        )
    return remarks


ESPRESSO = Code("Quantum ESPRESSO", tuple(INPUT_DFT), write, name_set)
