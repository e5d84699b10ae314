#!/usr/bin/env bash
# A run of several processes on this machine, as on several hosts: each has virtual CPU devices of its own.
#
#   bash launch/local.sh PROCESSES DEVICES [CONFIG.yaml] [key=value ...]
#
# Needs: nothing but this machine. Watch: process 0 prints here; all write runs/local-logs/process-N.log (LOGS names another
# folder). Resume: the same command. Ctrl-C or SIGTERM saves and leaves with 75. If a process dies, the others leave too.
# PORT is where the processes find each other (a free one), VERB what they run (train).
set -euo pipefail
if [ $# -lt 2 ] || ! [[ "$1$2" =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure base .
processes=$1 devices=$2
shift 2
export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=$processes
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
port="${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port"
logs="${LOGS:-runs/local-logs}"
mkdir -p "$logs"

started=()
trap 'kill -TERM "${started[@]}" 2> /dev/null || true' TERM INT
for ((n = 0; n < processes; n++)); do
  if [ "$n" = 0 ]; then
    JAX_PROCESS_ID=$n "$PYTHON" -m "motab_jax.${VERB:-train}" "$@" > >(tee "$logs/process-$n.log") 2>&1 &
  else
    JAX_PROCESS_ID=$n "$PYTHON" -m "motab_jax.${VERB:-train}" "$@" > "$logs/process-$n.log" 2>&1 &
  fi
  started+=($!)
done

# The status is that of the first process that did not leave with 0 or, where all were told to stop, with 75.
status=0
for ((n = 0; n < processes; n++)); do
  code=0
  wait "${started[$n]}" || code=$?
  while kill -0 "${started[$n]}" 2> /dev/null; do # the trap cut the wait short
    wait "${started[$n]}" && code=0 || code=$?
  done
  if [ "$code" != 0 ] && [ "$status" = 0 ]; then
    status=$code
    [ "$code" = 75 ] || echo "process $n left with status $code; its last words are in $logs/process-$n.log" >&2
  fi
done
exit "$status"
