#!/usr/bin/env bash
# Distils the shipped pair from nothing: makes .venv if absent, installs, trains and shows what was gained.
# Arguments go to the command, for example: bash launch/quickstart.sh configs/quickstart.yaml run.seed=1
# DRY=1 prints the commands instead.
set -euo pipefail
source "$(dirname "$0")/_venv.sh"
ensure base .
act exec "$PYTHON" -m motab_jax.train "$@"
