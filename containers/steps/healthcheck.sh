#!/usr/bin/env bash
# healthcheck.sh: exit with 0 if the server in this container answers a real inference correctly. Triton reports a model as
# ready even if its process has died, so this script does not check readiness.
#
# ATOMSIEVE_URL         address of the server (grpc://127.0.0.1:8001)
# ATOMSIEVE_MODEL       the model to check (gfm)
# ATOMSIEVE_TOKEN_FILE  as in serve.sh
set -euo pipefail
exec atomsieve serve check "${ATOMSIEVE_URL:-grpc://127.0.0.1:8001}" --model "${ATOMSIEVE_MODEL:-gfm}" --quiet \
    --token-file "${ATOMSIEVE_TOKEN_FILE:-/run/secrets/atomsieve-token}"
