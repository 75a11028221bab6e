#!/usr/bin/env bash
# wheel.sh PREFIX SOURCE OUT: build the wheel of the folder SOURCE into the folder OUT, with the environment PREFIX.
# The script builds from a copy, so SOURCE may be read-only and no leftover file there enters the wheel.
#
# ATOMSIEVE_REUSE_KERNELS=1  uses compiled kernels in SOURCE if they are newer than their sources
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=$(realpath "${1:?usage: wheel.sh PREFIX SOURCE OUT}")
source=$(realpath "${2:?usage: wheel.sh PREFIX SOURCE OUT}")
mkdir -p "${3:?usage: wheel.sh PREFIX SOURCE OUT}"
out=$(realpath "$3")

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/source"
for part in atomsieve pyproject.toml setup.py README.md LICENSE; do
    cp -Rp "$source/$part" "$scratch/source/"
done
cd "$scratch/source"
if [[ ${ATOMSIEVE_REUSE_KERNELS:-} == 1 ]]; then
    "$prefix/bin/python" - <<'PYTHON'
import sysconfig
from pathlib import Path
from shutil import copy2

native = Path("atomsieve/native")
sources = [Path("setup.py"), *native.glob("*.cpp"), *native.glob("*.h")]
compiled = list(native.glob("_kernels_*" + sysconfig.get_config_var("EXT_SUFFIX")))
if compiled and min(p.stat().st_mtime for p in compiled) > max(p.stat().st_mtime for p in sources):
    from setuptools import Distribution

    build = Distribution().get_command_obj("build")
    build.ensure_finalized()
    target = Path(build.build_platlib, native)
    target.mkdir(parents=True)
    for path in compiled:
        copy2(path, target)
PYTHON
fi
find atomsieve -name '*.so' -delete
find atomsieve -name __pycache__ -type d -prune -exec rm -rf {} +
say "wheel of $source"
pip_of "$prefix" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$scratch/out" .
"$prefix/bin/python" - "$scratch/out" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

[wheel] = Path(sys.argv[1]).glob("*.whl")
names = zipfile.ZipFile(wheel).namelist()
if not any(name.startswith("atomsieve/native/_kernels_base") for name in names):
    sys.exit(f"error: {wheel.name} has no compiled kernels: install a C++17 compiler (on Debian: g++)")
PYTHON
cp "$scratch"/out/*.whl "$out/"
