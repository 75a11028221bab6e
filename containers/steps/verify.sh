#!/usr/bin/env bash
# verify.sh PREFIX: say whether the environment PREFIX is whole; the last step of every build.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${1:?usage: verify.sh PREFIX}
say "checks of $prefix"
cd / # a source folder here must not hide what was installed
"$prefix/bin/atomsieve" --version
"$prefix/bin/screen" --help >/dev/null
"$prefix/bin/python" - <<'PYTHON'
import sys

from atomsieve.native import kernels

if kernels() is None:
    sys.exit("error: the compiled kernels cannot be loaded")
PYTHON
# The wheel with tritonserver is used for its binary alone, without the dependencies that it names.
if complaints=$(pip_of "$prefix" check | grep -v -e '^nvidia-pytriton ' -e '^No broken requirements'); then
    die "packages do not fit together: $complaints"
fi
