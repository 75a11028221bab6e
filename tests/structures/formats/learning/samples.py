"""Conversion of one file and what came of it, for the tests of formats of other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT

from atomsieve.structures import SourceInfo, StructureBatch, open_structures
from atomsieve.structures.conversion.convert import ConvertOptions, ConvertReport, Input, convert
from atomsieve.structures.conversion.validation import BlockValidator, ConversionCounts
from atomsieve.structures.formats import ReadRequest, read_blocks
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.units import Units

SOURCE = SourceInfo("a", "PBE")


def convert_file(path: Path, out: Path, source: SourceInfo | None = SOURCE, **options: object) -> ConvertReport:
    return convert([Input(path, source)], out, ConvertOptions(overwrite=True, **options))  # type: ignore[arg-type]


def read_dataset(path: Path) -> StructureBatch:
    with open_structures(path) as reader:
        return reader.read(0, len(reader)).validate()


def convert_and_read(path: Path, **options: object) -> StructureBatch:
    out = path.with_name(f"{path.name}.converted.bp")
    convert_file(path, out, **options)
    return read_dataset(out)


def read_with(
    request: ReadRequest, kind: str, units: Units | None = None, keys: LabelKeys | None = None
) -> tuple[StructureBatch, ConversionCounts]:
    """Return the structures that a reader gives for a request, validated, and what was counted."""
    validator = BlockValidator(keys or LabelKeys(), units=units)
    batches = [validator(block).batch for block in read_blocks(request, kind)]
    return StructureBatch.concatenate(batches).validate(), validator.tally


def check_by_emt(batch: StructureBatch, tolerance: float = 1e-9) -> None:
    """Compare every label with what ASE's EMT gives for the structure."""
    for s, atoms in enumerate(batch.to_ase()):
        found = atoms.calc.results
        again = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=EMT())
        np.testing.assert_allclose(found["energy"], again.get_potential_energy(), rtol=0, atol=tolerance)
        np.testing.assert_allclose(found["forces"], again.get_forces(), rtol=0, atol=10 * tolerance)
        if batch.has_stress is not None and batch.has_stress[s]:
            np.testing.assert_allclose(batch.stress[s], again.get_stress(voigt=False), rtol=0, atol=tolerance)


def distort(atoms: Atoms, seed: int) -> Atoms:
    """Return a copy with other positions and, if it is periodic, another cell, labelled by EMT."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    if atoms.pbc.all():
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.calc = EMT()
    atoms.get_potential_energy()
    return atoms
