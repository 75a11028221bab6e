"""Files of codes that are cut off, or in which bytes were changed: structures, bad structures, or one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.structures.block import gather_blocks
from atomsieve.structures.formats import FORMATS, ReadRequest
from tests.structures.formats.codes.reading import FILES
from tests.structures.formats.codes.test_ase_codes import GPAW_HEAD, GPAW_STEP, ORCA_HEAD, ORCA_STEP
from tests.structures.formats.codes.test_cp2k import ENERGY, FORCES_2025, HEAD, STRESS, frame
from tests.structures.formats.codes.test_trajectories import PDB
from tests.structures.formats.codes.test_vasp import DONE, XDATCAR, calculation, configuration, ml_ab, vasprun

CP2K = HEAD.format(version="2025.2", periodic="CELL| Periodicity XY", angstrom="ANGSTROM")
TEXTS = {
    "vasprun": vasprun(calculation(-20.0, 0.0, DONE), calculation(-21.0, 0.1, DONE)),
    "outcar": FILES / "OUTCAR_Ni18",
    "xdatcar": XDATCAR,
    "ml_ab": ml_ab(configuration(-30.0), configuration(-31.0)),
    "espresso": FILES / "espresso_silicon.out",
    "cp2k-xyz": frame(0, "-17.0") + frame(1, "-17.1"),
    "cp2k": CP2K + ENERGY.format(unit="[hartree]") + FORCES_2025 + STRESS,
    "aims": FILES / "aims_water_md.out",
    "gpaw": GPAW_HEAD + GPAW_STEP.format(convergence="") * 2,
    "castep": FILES / "castep_md.castep",
    "orca": ORCA_HEAD + ORCA_STEP.format(scf="", energy="-76.4") + "ORCA TERMINATED NORMALLY\n",
    "lammps-dump": FILES / "lammps_metal.dump",
    "lammps-data": FILES / "lammps_alloy.data",
    "pdb": PDB,
}


def read_quietly(path: Path, kind: str) -> int:
    """Return the number of structures; -1 for a refusal in one line; any other error is a failure."""
    read = FORMATS[kind].read
    assert read is not None
    try:
        return sum(len(block) for block in gather_blocks(read(ReadRequest(path, elements=("Al", "Ni")))))
    except AtomSieveError as error:
        return -str(error).count("\n") - 1


@pytest.mark.parametrize("kind", TEXTS)
def test_damaged_files_are_told_in_words(tmp_path: Path, kind: str) -> None:
    source = TEXTS[kind]
    whole = source.read_bytes() if isinstance(source, Path) else source.encode()
    rng, path = np.random.default_rng(7), tmp_path / "file"
    path.write_bytes(whole)
    most = read_quietly(path, kind)
    assert most > 0
    for cut in rng.integers(0, len(whole), 10).tolist():
        path.write_bytes(whole[:cut])
        assert -1 <= read_quietly(path, kind) <= most
    lines = whole.splitlines(keepends=True)
    for _ in range(20):
        changed = list(lines)
        k = int(rng.integers(len(lines)))
        match int(rng.integers(5)):
            case 0:
                del changed[k]
            case 1:
                changed.insert(k, changed[int(rng.integers(len(lines)))])
            case 2:
                changed[k] = changed[k].replace(b"0", b"*")
            case 3:
                changed[k] = rng.bytes(20) + b"\n"
            case _:
                changed[k] = b" ".join([*changed[k].split(), b"9" * 25]) + b"\n"
        path.write_bytes(b"".join(changed))
        assert read_quietly(path, kind) >= -1
