#!/usr/bin/env bash
# ASE 3.29.0: reading all frames of a gzip-compressed extended XYZ file decompresses it from its beginning twice for every frame.
#
# `read_xyz(file, slice(None))` first notes where each frame begins, then seeks back to each of them. A text stream over gzip can only go
# back by starting again, so the work grows with the square of the number of frames: 2,281 frames of 25 atoms took more than a minute
# of processor time, the same text held in memory two seconds. Nothing warns of it, and `ase.io.read("x.extxyz.gz", ":")` takes this way.
#
# Output seen (2026-12-01, Python 3.11):
#   1000 frames read, the compressed file begun again 1999 times
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'ase==3.29.0' 'numpy==2.4.6'
cat > "$work/gz.py" <<'PY'
import gzip
import io
import sys
import tempfile

from ase.build import molecule
from ase.io import write
from ase.io.extxyz import read_xyz


class Counted(io.FileIO):
    starts = 0

    def seek(self, offset, whence=0):
        if offset == 0 and whence == 0 and self.tell() > 0:
            Counted.starts += 1
        return super().seek(offset, whence)


with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/many.extxyz.gz"
    with gzip.open(path, "wt") as text:
        write(text, [molecule("CH3CH2OH")] * 1000, format="extxyz")
    with gzip.open(Counted(path), "rt") as text:
        frames = len(list(read_xyz(text, slice(None))))
print(f"{frames} frames read, the compressed file begun again {Counted.starts} times")
assert Counted.starts >= frames // 2, "changed: frames are read without starting again"
PY
"$work/venv/bin/python" "$work/gz.py"
