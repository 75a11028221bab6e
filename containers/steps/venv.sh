#!/usr/bin/env bash
# venv.sh PREFIX: create an environment in the folder PREFIX, with the tools that build a wheel.
# PYTHON names the Python to use.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${1:?usage: venv.sh PREFIX}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is $("$python" --version 2>&1); at least Python 3.11 is needed: name one with PYTHON=/path/to/python"
say "environment in $prefix"
if [[ -n ${ATOMSIEVE_REUSE:-} ]]; then
    "$python" -m venv --without-pip "$prefix" # the tools are among the packages that dependencies.sh reuses
else
    "$python" -m venv "$prefix"
    pip_of "$prefix" install --quiet setuptools wheel
fi
