# shellcheck shell=bash
# Functions of the other steps, which the Dockerfiles, the Apptainer definition and build_plain.sh run.

containers=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The scripts that source this file use these.
# shellcheck disable=SC2034
constraints="$containers/constraints.txt"

die() {
    echo "error: $*" >&2
    exit 1
}

say() { echo "== $*" >&2; }

# Run pip of the environment $1 without prompts; constraints.txt sets every version, also those of build tools.
pip_of() {
    local prefix=$1
    shift
    PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT="$constraints" \
        "$prefix/bin/python" -m pip "$@"
}
