#!/usr/bin/env bash
# dependencies.sh PREFIX PYPROJECT EXTRA...: install the dependencies of the package and its extras into PREFIX.
# It reads only pyproject.toml, so the layer of an image stays valid when only code changes.
#
# TORCH_INDEX      a package index for torch, e.g. PyTorch's index of builds for the CPU; by default the usual one
# ATOMSIEVE_REUSE  a site-packages folder whose packages replace downloads (for tests of these steps)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${1:?usage: dependencies.sh PREFIX PYPROJECT EXTRA...}
pyproject=${2:?usage: dependencies.sh PREFIX PYPROJECT EXTRA...}
shift 2

wanted=$("$prefix/bin/python" "$containers/steps/requirements.py" "$pyproject" "$@")
mapfile -t requirements <<<"$wanted"
if [[ -n ${ATOMSIEVE_REUSE:-} ]]; then
    say "packages of $ATOMSIEVE_REUSE, without downloads"
    mkdir -p "$prefix/reused"
    for entry in "$ATOMSIEVE_REUSE"/*; do
        case ${entry##*/} in
            atomsieve* | __editable__* | *.pth | __pycache__) ;; # the package itself must come from its wheel
            *) ln -sfn "$entry" "$prefix/reused/" ;;
        esac
    done
    site=$("$prefix/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    realpath "$prefix/reused" >"$site/reused.pth"
    exit 0
fi
if [[ -n ${TORCH_INDEX:-} ]]; then
    say "torch from its own index"
    pip_of "$prefix" install --index-url "$TORCH_INDEX" torch
fi
say "${#requirements[@]} requirements"
pip_of "$prefix" install "${requirements[@]}"
