#!/usr/bin/env bash
# torch 2.13.0: of two allowed classes that go by one name, torch.load(weights_only=True) takes one at random, anew in each process.
#
# `add_safe_globals([A])` allows a class under its own name; `safe_globals([(B, "name of A")])` lends that name to a stand-in B for the
# time of one load, which the documentation offers for classes that moved. The two are kept in a set and looked up by name, so the
# order of the set decides which class is built, and that changes with the addresses and hashes of a process. One expects the entry of
# the inner context to win, or an error. It matters with torch-geometric, whose import registers its own classes: a program that
# loads its files through a stand-in gets the stand-in in some runs and the class in others.
#
# Output seen (2026-12-01, Python 3.11; the counts differ from run to run):
#   20 processes: A 9, B 11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.4.6'
cat > "$work/one.py" <<'PY'
import io

import torch


class A:
    pass


class B:
    pass


saved = io.BytesIO()
torch.save(A(), saved)
saved.seek(0)
torch.serialization.add_safe_globals([A])
with torch.serialization.safe_globals([(B, "__main__.A")]):
    print(type(torch.load(saved, weights_only=True)).__name__)
PY
"$work/venv/bin/python" - "$work/venv/bin/python" "$work/one.py" <<'PY'
import collections
import subprocess
import sys

found = collections.Counter(subprocess.check_output(sys.argv[1:], text=True).strip() for _ in range(20))
print(f"20 processes: A {found['A']}, B {found['B']}")
assert set(found) == {"A", "B"}, "changed: the same class in every process"
PY
