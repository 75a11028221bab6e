#!/usr/bin/env bash
# dependencies.sh PREFIX PYPROJECT EXTRA...: install what the package and its extras need into the environment PREFIX.
# It needs pyproject.toml alone, so that a layer of an image stays good when only code changes.
#
# TORCH_INDEX      a package index to take torch from, e.g. PyTorch's own one of builds for the CPU; else the usual one
# ATOMSIEVE_REUSE  a site-packages folder whose packages are used in place of downloads (for tests of these steps)
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
            atomsieve* | __editable__* | *.pth | __pycache__) ;; # the package itself must be its wheel
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
