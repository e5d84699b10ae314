# shellcheck shell=bash
# Sourced by the launch files. `usage` prints the header of the file that runs and leaves with 2; `need NAMES...` does
# so for the first variable that isn't set; `mistake TEXT` says what is wrong and leaves with 2. `act WORDS...` runs a
# command; with DRY=1 it prints it, as a shell would read it, and nothing is done.

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

mistake() {
  echo "error: $1" >&2
  exit 2
}

quoted() { # the words as a shell reads them, lines of their own kept
  local word quote="'\\''" line=''
  for word in "$@"; do
    if [[ ! "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word="'${word//\'/$quote}'"; fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

act() {
  if [ -n "${DRY:-}" ]; then quoted "$@"; else "$@"; fi
}
