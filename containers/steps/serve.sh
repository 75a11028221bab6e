#!/usr/bin/env bash
# serve.sh [OPTION...]: the default command of an image: serve a model repository to clients that present the token.
#
# ATOMSIEVE_REPOSITORY  the folder that `atomsieve serve repository` wrote (/models)
# ATOMSIEVE_TOKEN_FILE  the file with the token (/run/secrets/atomsieve-token), which must exist
# ATOMSIEVE_HTTP_PORT   the port for HTTP (8000), 0 for none
# Options are those of `atomsieve serve start`, e.g. --tls-cert and --tls-key.
set -euo pipefail
exec atomsieve serve start --repository "${ATOMSIEVE_REPOSITORY:-/models}" --listen 0.0.0.0 \
    --http-port "${ATOMSIEVE_HTTP_PORT:-8000}" --token-file "${ATOMSIEVE_TOKEN_FILE:-/run/secrets/atomsieve-token}" "$@"
