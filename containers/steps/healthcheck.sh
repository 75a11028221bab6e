#!/usr/bin/env bash
# healthcheck.sh: 0 if the server in this container answers a true inference correctly. A model whose process has died
# still calls itself ready, so readiness is not asked.
#
# ATOMSIEVE_URL         where the server is (grpc://127.0.0.1:8001)
# ATOMSIEVE_MODEL       the model that is asked (gfm)
# ATOMSIEVE_TOKEN_FILE  as in serve.sh
set -euo pipefail
exec atomsieve serve check "${ATOMSIEVE_URL:-grpc://127.0.0.1:8001}" --model "${ATOMSIEVE_MODEL:-gfm}" --quiet \
    --token-file "${ATOMSIEVE_TOKEN_FILE:-/run/secrets/atomsieve-token}"
