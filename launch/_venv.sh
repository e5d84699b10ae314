# shellcheck shell=bash
# Sourced by the launch files. Goes to the repository root and offers `ensure NAME PIP_ARGUMENTS...`: makes the virtual
# environment VENV (.venv) with PYTHON3 (python3) if absent, and installs, once for each content of setup.py and the
# locks. With a lock requirements/NAME.txt, its packages are installed, hashes checked, and then what the arguments
# name without dependencies. Without one pip chooses.

source "$(dirname "${BASH_SOURCE[0]}")/_usage.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
VENV="${VENV:-.venv}"
PYTHON="$VENV/bin/python"
export OMP_WAIT_POLICY=PASSIVE
# Large pages for large arrays on a CPU: the first touch of fresh memory costs less.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

ensure() {
  local lock="requirements/$1.txt" stamp="$VENV/installed-$1" want
  shift
  want="$(cat setup.py requirements/*.txt | cksum) $*"
  if [ ! -x "$PYTHON" ]; then
    "${PYTHON3:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "Python 3.11 or newer is needed; name one, for example: PYTHON3=python3.12 bash $0" >&2
      return 2
    }
    act "${PYTHON3:-python3}" -m venv "$VENV" || return
  fi
  [ "$(cat "$stamp" 2> /dev/null)" = "$want" ] && return 0
  if [ -f "$lock" ]; then
    act "$PYTHON" -m pip install --quiet --require-hashes -r "$lock" || return
    act "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation "$@" || return
  else
    act "$PYTHON" -m pip install --quiet "$@" || return
  fi
  [ -n "${DRY:-}" ] || echo "$want" > "$stamp"
}
