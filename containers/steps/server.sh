#!/usr/bin/env bash
# server.sh PREFIX: install NVIDIA's tritonserver into the environment PREFIX, from the wheel that contains its binary.
# It omits the wheel's own dependencies, which would pull numpy below 2.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${1:?usage: server.sh PREFIX}
wheel=nvidia-pytriton==0.7.0
if [[ -n ${ATOMSIEVE_REUSE:-} ]]; then
    say "tritonserver of the packages that are reused"
    exit 0
fi
say "$wheel"
pip_of "$prefix" install --no-deps "$wheel"
