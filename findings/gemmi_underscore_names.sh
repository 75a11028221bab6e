#!/usr/bin/env bash
# gemmi 0.7.5: a space-group name with an underscore is understood for most systems, and unknown for short monoclinic names.
#
# `find_spacegroup_by_name` takes the underscore of a screw axis in tetragonal, hexagonal and orthorhombic names (P4_2/mnm, P6_3/mmc,
# P2_12_12_1), and in the full monoclinic one (P 1 2_1/c 1). The short names P2_1/c, P2_1/m, P2_1/n and P2_1, among the most frequent
# of all crystals, give None, while P21/c is found. pymatgen writes these short names with the underscore into CIF files. Code that
# was tried with some names and takes None for "no such group, so P 1" loses the symmetry of exactly these crystals.
#
# Output seen (2026-12-01, Python 3.11):
#   P6_3/mmc -> 194, P4_2/mnm -> 136, P2_12_12_1 -> 19, P 1 2_1/c 1 -> 14, P21/c -> 14
#   P2_1/c -> None, P2_1/m -> None, P2_1/n -> None, P2_1 -> None
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'gemmi==0.7.5'
"$work/venv/bin/python" - <<'PY'
import gemmi


def find(names):
    found = {name: gemmi.find_spacegroup_by_name(name) for name in names}
    numbers = {name: None if group is None else group.number for name, group in found.items()}
    print(", ".join(f"{name} -> {number}" for name, number in numbers.items()))
    return list(numbers.values())


assert find(["P6_3/mmc", "P4_2/mnm", "P2_12_12_1", "P 1 2_1/c 1", "P21/c"]) == [194, 136, 19, 14, 14], "changed"
assert find(["P2_1/c", "P2_1/m", "P2_1/n", "P2_1"]) == [None] * 4, "changed: short monoclinic names are known now"
PY
