# shellcheck shell=bash
# Shared by the other steps, which the Dockerfiles, the Apptainer definition and build_plain.sh all run.

containers=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Used by the scripts that read this file.
# shellcheck disable=SC2034
constraints="$containers/constraints.txt"

die() {
    echo "error: $*" >&2
    exit 1
}

say() { echo "== $*" >&2; }

# pip of the environment $1, asking nothing; every version comes from constraints.txt, also those of build tools
pip_of() {
    local prefix=$1
    shift
    PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT="$constraints" \
        "$prefix/bin/python" -m pip "$@"
}
