# shellcheck shell=bash
# Sourced by the launch files. Goes to the repository root and offers `ensure NAME PIP_ARGUMENTS...`:
# makes .venv if absent and installs what is asked for, once for each content of setup.py.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON=.venv/bin/python
export OMP_WAIT_POLICY=PASSIVE
# Large pages for large arrays on a CPU: the first touch of fresh memory costs less.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

ensure() {
  local stamp=".venv/installed-$1" want
  shift
  want="$(cksum < setup.py) $*"
  if [ ! -x "$PYTHON" ]; then
    "${PYTHON3:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "Python 3.11 or newer is needed; name one, for example: PYTHON3=python3.12 bash $0" >&2
      return 2
    }
    "${PYTHON3:-python3}" -m venv .venv
  fi
  [ "$(cat "$stamp" 2> /dev/null)" = "$want" ] && return 0
  "$PYTHON" -m pip install --quiet "$@"
  echo "$want" > "$stamp"
}
