#!/usr/bin/env bash
# pymatgen 2026.10.24 with ase 3.29.0: the total charge of a structure changes on its way through JSON and through ASE.
#
# 1. A crystal with formal oxidation states and one cation removed has no charge set (`_charge is None`); its `charge` is the sum of
#    the formal states, -1. `Structure.from_dict(s.as_dict())`, and so every JSON file, makes that sum a charge that is set: after
#    `remove_oxidation_states()` the original has charge 0, the one from JSON still -1. One expects the two to be the same structure.
# 2. `AseAtomsAdaptor.get_atoms(Structure(..., charge=1))` drops the charge without a word, and the way back gives 0. For a Molecule
#    the charge becomes an attribute of the Atoms, which `atoms.copy()` drops.
#
# Output seen (2026-12-01, Python 3.11):
#   before JSON: set None, without oxidation states 0.0
#   after JSON: set -1.0, without oxidation states -1.0
#   Structure of charge 1 through ASE: 0.0
#   Molecule of charge -1: attribute -1, after atoms.copy(): None
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pymatgen==2026.10.24' 'ase==3.29.0'
"$work/venv/bin/python" -W ignore - <<'PY'
from pymatgen.core import Lattice, Molecule, Structure
from pymatgen.io.ase import AseAtomsAdaptor

salt = Structure(Lattice.cubic(4.2), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]) * 2
salt.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
salt.remove_sites([0])
again = Structure.from_dict(salt.as_dict())
found = []
for name, structure in (("before", salt), ("after", again)):
    bare = structure.copy()
    bare.remove_oxidation_states()
    found.append((structure._charge, bare.charge))
    print(f"{name} JSON: set {structure._charge}, without oxidation states {bare.charge}")
assert found[0] == (None, 0), "changed: a sum of oxidation states is a charge that is set now"
assert found[1] == (-1, -1), "changed: JSON no longer turns the sum into a charge that is set"

ion = Structure(Lattice.cubic(4.2), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], charge=1)
back = AseAtomsAdaptor.get_structure(AseAtomsAdaptor.get_atoms(ion)).charge
print(f"Structure of charge 1 through ASE: {back}")
assert back == 0, "changed: the charge of a structure passes through ASE"

atoms = AseAtomsAdaptor.get_atoms(Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1.0]], charge=-1))
copied = getattr(atoms.copy(), "charge", None)
print(f"Molecule of charge -1: attribute {atoms.charge}, after atoms.copy(): {copied}")
assert atoms.charge == -1 and copied is None, "changed: the attribute or its copy"
PY
