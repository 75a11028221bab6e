#!/usr/bin/env bash
# venv.sh PREFIX: make an environment in the folder PREFIX, with the tools that build a wheel.
# PYTHON names the Python it is made with.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${1:?usage: venv.sh PREFIX}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is $("$python" --version 2>&1); at least Python 3.11 is needed: name one with PYTHON=/path/to/python"
say "environment in $prefix"
"$python" -m venv "$prefix"
if [[ -n ${ATOMSIEVE_REUSE:-} ]]; then
    pip_of "$prefix" uninstall --quiet --yes setuptools # the one that venv brings would hide the one that is reused
else
    pip_of "$prefix" install --quiet setuptools wheel
fi
