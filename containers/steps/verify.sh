#!/usr/bin/env bash
# verify.sh PREFIX: check that the environment PREFIX is complete; the last step of every build.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${1:?usage: verify.sh PREFIX}
say "checks of $prefix"
cd / # a source folder in the current folder must not hide the installed package
"$prefix/bin/atomsieve" --version
"$prefix/bin/screen" --help >/dev/null
"$prefix/bin/python" - <<'PYTHON'
import sys

from atomsieve.native import kernels

if kernels() is None:
    sys.exit("error: the compiled kernels cannot be loaded")
PYTHON
# Only the binary of the wheel with tritonserver is used, so the dependencies that the wheel names may be missing.
if complaints=$(pip_of "$prefix" check | grep -v -e '^nvidia-pytriton ' -e '^No broken requirements'); then
    die "packages do not fit together: $complaints"
fi
