#!/usr/bin/env bash
# The tests: makes .venv if absent, installs the extra [test], runs pytest. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/_venv.sh"
ensure test --editable .
exec "$PYTHON" -m pytest "$@"
