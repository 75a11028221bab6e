"""Extended XYZ as GPUMD's NEP and QUIP's GAP write it: energies, forces and virials under their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from tests.structures.formats.learning.samples import check_by_emt, convert_and_read, convert_file, distort

IMAGES = [distort(bulk("Cu", cubic=True), 1), distort(bulk("Al", cubic=True) * (2, 1, 1), 2)]


def virial_of(atoms: Atoms) -> str:
    virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
    return " ".join(f"{value:.17g}" for value in virial.ravel())


def rows_of(atoms: Atoms, *columns: np.ndarray) -> list[str]:
    table = np.column_stack([atoms.positions, *columns, atoms.get_forces()])
    return [f"{s} " + " ".join(f"{v:.17g}" for v in row) for s, row in zip(atoms.symbols, table.tolist(), strict=True)]


def write_nep(path: Path, header: str) -> Path:
    """Write a training set in the layout that GPUMD's manual gives for `train.xyz`."""
    lines = []
    for atoms in IMAGES:
        cell = " ".join(f"{value:.17g}" for value in atoms.cell.array.ravel())
        energy = f"{atoms.get_potential_energy():.17g}"
        lines += [str(len(atoms)), header.format(energy=energy, virial=virial_of(atoms), cell=cell), *rows_of(atoms)]
    path.write_text("\n".join(lines) + "\n")
    return path


NEP = 'energy={energy} virial="{virial}" %s="{cell}" %s=species:S:1:pos:R:3:%s:R:3 weight=1.0'


@pytest.mark.parametrize(
    "header",
    [
        NEP % ("Lattice", "Properties", "force") + ' pbc="T T T"',
        NEP % ("Lattice", "Properties", "forces"),
        NEP % ("lattice", "properties", "force"),
    ],
)
def test_training_sets_of_nep(tmp_path: Path, header: str) -> None:
    file = write_nep(tmp_path / "train.xyz", header)
    batch = convert_and_read(file)
    assert batch.pbc.all()
    assert batch.has_stress.all() and batch.has_forces.all()
    check_by_emt(batch)
    report = convert_file(file, tmp_path / "o.bp")
    assert report.tally.found.taken["stress", "-virial/volume"] == 2


@pytest.mark.parametrize(
    ("energy", "force", "virial"),
    [("dft_energy", "dft_force", "dft_virial"), ("DFT_energy", "DFT_forces", "DFT_virial")],
)
def test_training_sets_of_gap(tmp_path: Path, energy: str, force: str, virial: str) -> None:
    """The columns and keys that QUIP writes: the number of each element, counts of neighbours, shifts of the map."""
    lines = []
    for atoms in IMAGES:
        cell = " ".join(f"{value:.17g}" for value in atoms.cell.array.ravel())
        lines += [
            str(len(atoms)),
            f'{energy}={atoms.get_potential_energy():.17g} {virial}="{virial_of(atoms)}" config_type=bulk '
            f'nneightol=1.2 cutoff=-1.0 Lattice="{cell}" pbc="T T T" '
            f"Properties=species:S:1:pos:R:3:Z:I:1:n_neighb:I:1:{force}:R:3",
        ]
        whole = zip(atoms.symbols, atoms.positions.tolist(), atoms.numbers.tolist(), atoms.get_forces(), strict=True)
        for symbol, place, number, forces in whole:
            numbers = [*(f"{v:.17g}" for v in place), str(number), "12", *(f"{v:.17g}" for v in forces.tolist())]
            lines.append(f"{symbol} " + " ".join(numbers))
    (tmp_path / "gp.xyz").write_text("\n".join(lines) + "\n")
    batch = convert_and_read(tmp_path / "gp.xyz")
    assert batch.has_stress.all()
    check_by_emt(batch)
