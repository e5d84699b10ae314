#!/usr/bin/env bash
# Installs the package in .venv with the packages of a lock of requirements/: base, data, tpu, cuda.
#
#   bash launch/install.sh LOCK
#
# DRY=1 prints the commands instead.
# Where python3 is older than 3.11 or can't make a virtual environment, uv brings a Python and checks its hash.
set -euo pipefail
source "$(dirname "$0")/_usage.sh"
[ -f "$(dirname "$0")/../requirements/${1:-}.txt" ] || usage
source "$(dirname "$0")/_venv.sh"
python="${PYTHON3:-python3}"
if [ ! -x "$PYTHON" ] && ! "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
  [ -x "$VENV-uv/bin/uv" ] || act "$python" -m pip install --quiet --target "$VENV-uv" --require-hashes -r requirements/uv.txt
  act "$VENV-uv/bin/uv" venv --quiet --seed --python 3.12 "$VENV"
fi
ensure "$1" .
