#!/usr/bin/env bash
# extxyz 0.4.6 (libAtoms) beside ase 3.29.0: the reference library rewrites a file that ASE reads into one that ASE refuses.
#
# A frame whose header holds stress="9 numbers" (the usual spelling) is read by both. libAtoms extxyz writes the matrix it read back
# as nested brackets, stress=[[..], [..], [..]], which its own specification allows; ASE's extxyz reader takes such a value for
# special keys (stress, virial) only as nine numbers in a row, and raises for the whole frame, its good energy and positions included.
# A file that goes once through the library therefore cannot be read by ASE any more. Both writers of extxyz (C and Python) do it.
#
# A second trap in the same place: nine numbers in a row are read in Fortran order, and nested brackets by rows, so the numbers of a
# matrix that is not symmetric come out in another order than they went in (virial "1 2 3 4 5 6 7 8 9" -> [[1, 4, 7], [2, 5, 8], [3, 6, 9]]).
#
# Output seen (2026-12-01, Python 3.11):
#   ASE reads the file as given: energy -1.5
#   C writer: ASE raises ValueError: Got info item stress, expecting special 3x3 matrix, but value is not in the form of a 9-long numerical vector
#   Python writer: ASE raises ValueError: Got info item stress, expecting special 3x3 matrix, but value is not in the form of a 9-long numerical vector
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'extxyz==0.4.6' 'ase==3.29.0'
cd "$work"
"$work/venv/bin/python" - <<'PY'
import extxyz
from ase.io import read

header = 'Lattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 energy=-1.5 pbc="T T T" '
matrices = 'stress="0.1 0 0 0 0.2 0 0 0 0.3" virial="1 2 3 4 5 6 7 8 9"'
with open("given.xyz", "w") as file:
    file.write(f"2\n{header}{matrices}\nCu 0 0 0\nCu 1.5 1.5 1.5\n")
print("ASE reads the file as given: energy", read("given.xyz").calc.results["energy"])

frames = list(extxyz.iread_dicts("given.xyz"))
assert frames[0].info["virial"].tolist() == [[1, 4, 7], [2, 5, 8], [3, 6, 9]], "changed: order of nine numbers in a row"
for name, compiled in (("C", True), ("Python", False)):
    extxyz.write_dicts("rewritten.xyz", frames, use_cextxyz=compiled)
    with open("rewritten.xyz") as file:
        text = file.read()
    assert "stress=[[" in text and "virial=[[1, 4, 7], [2, 5, 8], [3, 6, 9]]" in text, "changed: spelling of matrices"
    try:
        read("rewritten.xyz")
    except ValueError as error:
        print(f"{name} writer: ASE raises ValueError: {error}")
    else:
        raise SystemExit("changed: ASE reads nested matrices now")
PY
