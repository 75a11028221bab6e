#!/usr/bin/env bash
# ase 3.29.0: elements of a LAMMPS data file are the ones of nearest mass, however far that is, and nothing is said.
#
# A data file numbers its types and states a mass for each. The reader takes, for every type, the element whose mass is nearest: a
# united atom CH3 (15.035) becomes oxygen, a coarse-grained bead of mass 72 becomes germanium. Atoms come back with plausible symbols,
# and energies of any model for them are wrong numbers without a warning. One expects a mass that is no element's to be refused.
#
# Output seen (2026-12-01, Python 3.11):
#   masses 15.035 (CH3) and 72 (bead) -> ['O', 'O', 'Ge'], warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'ase==3.29.0'
cd "$work"
cat > beads.data <<'DATA'
united atoms and a bead

3 atoms
2 atom types

0 10 xlo xhi
0 10 ylo yhi
0 10 zlo zhi

Masses

1 15.035
2 72.0

Atoms # atomic

1 1 1 1 1
2 1 3 3 3
3 2 5 5 5
DATA
"$work/venv/bin/python" - <<'PY'
import warnings

import ase.io

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    symbols = ase.io.read("beads.data", format="lammps-data").get_chemical_symbols()
print(f"masses 15.035 (CH3) and 72 (bead) -> {symbols}, warnings: {len(caught)}")
assert symbols == ["O", "O", "Ge"] and not caught, "changed: the species or a warning"
PY
