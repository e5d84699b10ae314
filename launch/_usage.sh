# shellcheck shell=bash
# Sourced by the launch files. `usage` prints the header of the file that runs and leaves with 2; `need NAMES...` does
# so for the first variable that isn't set.

usage() {
  sed -n -E '2,/^([^#]|$)/s/^# ?//p' "$0" >&2
  exit 2
}

need() {
  local variable
  for variable in "$@"; do
    if [ -z "${!variable:-}" ]; then
      echo "error: $variable is not set" >&2
      usage
    fi
  done
}
