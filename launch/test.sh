#!/usr/bin/env bash
# The tests: makes .venv if absent, installs the extra [test], runs pytest. Arguments go to pytest.
# DRY=1 prints the commands instead.
set -euo pipefail
source "$(dirname "$0")/_venv.sh"
ensure test --editable .
act exec "$PYTHON" -m pytest "$@"
