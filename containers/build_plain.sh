#!/usr/bin/env bash
# build_plain.sh PREFIX [EXTRA...]: run the steps of the images in a plain folder: an environment with AtomSieve.
#
# PYTHON, TORCH_INDEX, ATOMSIEVE_REUSE, ATOMSIEVE_REUSE_KERNELS: see the steps.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
steps=$here/steps

prefix=${1:?usage: build_plain.sh PREFIX [EXTRA...]}
shift
[[ $# -gt 0 ]] || set -- mpi export serve uncertainty
[[ ! -e $prefix ]] || {
    echo "error: $prefix is there already; name a new folder" >&2
    exit 2
}
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

"$steps/venv.sh" "$prefix"
"$steps/dependencies.sh" "$prefix" "$here/../pyproject.toml" "$@"
"$steps/server.sh" "$prefix"
"$steps/wheel.sh" "$prefix" "$here/.." "$wheels"
"$steps/package.sh" "$prefix" "$wheels"
"$steps/verify.sh" "$prefix"
echo "$prefix/bin/atomsieve"
