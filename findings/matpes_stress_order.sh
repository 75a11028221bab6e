#!/usr/bin/env bash
# MatPES records (as shipped in matcalc 0.7.0): six numbers of stress in Voigt's order, though they come from VASP in VASP's units.
#
# A record holds `stress`, six numbers in kB with VASP's sign and no word on their order. VASP prints XX YY ZZ XY YZ ZX, and whoever
# takes these for VASP's order swaps all shears. The crystals decide it. Arsenic is rhombohedral: its stress has to be a multiple of the
# unit matrix plus one along the three-fold axis a + b + c. Selenium is monoclinic with its unique axis along y: of the shears, only xz
# may differ from zero. Both hold for xx yy zz yz xz xy (Voigt, as in ASE), and neither for VASP's order.
#
# Output seen (2026-12-01, Python 3.11, numpy 2.4.6):
#   As: off the form that its symmetry allows by 0.0000 kB as yz xz xy, by 1.8896 kB as xy yz zx
#   Se: shears [0.0, -0.5846, 0.0], cell vector b along y: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'numpy==2.4.6'
"$work/venv/bin/pip" download --quiet --no-deps --dest "$work/matcalc" 'matcalc==0.7.0'
"$work/venv/bin/python" - "$work"/matcalc/matcalc-0.7.0* <<'PY'
import gzip
import json
import sys
import tarfile
import zipfile

import numpy as np

path, name = sys.argv[1], "matcalc/elemental_refs/MatPES-PBE-Element-Refs.json.gz"
if path.endswith(".whl"):
    raw = zipfile.ZipFile(path).read(name)
else:
    with tarfile.open(path) as archive:
        raw = archive.extractfile(next(n for n in archive.getnames() if n.endswith(name))).read()
records = json.loads(gzip.decompress(raw))


def find(element):
    return next(r for r in records.values() if r["elements"] == [element])


def miss(record, order):
    """Return the largest part of the stress that the three-fold axis a + b + c forbids, kB."""
    axis = np.sum(record["structure"]["lattice"]["matrix"], axis=0)
    axis /= np.linalg.norm(axis)
    stress = np.diag(np.array(record["stress"][:3]))
    for value, (i, j) in zip(record["stress"][3:], order, strict=True):
        stress[i, j] = stress[j, i] = value
    along = axis @ stress @ axis
    across = (np.trace(stress) - along) / 2
    return np.abs(stress - across * np.eye(3) - (along - across) * np.outer(axis, axis)).max()


voigt, vasp = ((1, 2), (0, 2), (0, 1)), ((0, 1), (1, 2), (2, 0))
arsenic, selenium = find("As"), find("Se")
print(f"As: off the form that its symmetry allows by {miss(arsenic, voigt):.4f} kB as yz xz xy, by {miss(arsenic, vasp):.4f} kB as xy yz zx")
shears = [round(x, 4) + 0.0 for x in selenium["stress"][3:]]
unique = np.allclose(selenium["structure"]["lattice"]["matrix"][1][::2], 0)
print(f"Se: shears {shears}, cell vector b along y: {unique}")
assert miss(arsenic, voigt) < 0.01 < 1 < miss(arsenic, vasp), "changed: order of the stress"
assert unique and shears[0] == shears[2] == 0 and abs(shears[1]) > 0.1, "changed: order of the stress"
PY
