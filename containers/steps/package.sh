#!/usr/bin/env bash
# package.sh PREFIX FOLDER: install the wheel in FOLDER into the environment PREFIX, which has its dependencies.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${1:?usage: package.sh PREFIX FOLDER}
folder=${2:?usage: package.sh PREFIX FOLDER}
wheels=("$folder"/atomsieve-*.whl)
[[ ${#wheels[@]} == 1 && -f ${wheels[0]} ]] || die "$folder must hold one wheel of atomsieve, it holds: ${wheels[*]}"
say "${wheels[0]##*/}"
pip_of "$prefix" install --quiet --no-deps "${wheels[0]}"
