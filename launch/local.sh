#!/usr/bin/env bash
# A run of several processes on this machine, as on several hosts: each has virtual CPU devices of its own.
#
#   bash launch/local.sh PROCESSES DEVICES [CONFIG.yaml] [key=value ...]
#
# Needs: nothing but this machine. Optional: LOGS (runs/local-logs), PORT (where the processes meet, a free one), VERB
# (train), DRY=1 (print the commands instead). If a process dies, the others leave too.
# Watch:  process 0 prints here, and all write LOGS/process-N.log
# Stop:   Ctrl-C, or SIGTERM to this script: saves and leaves with 75
# Resume: the same command
set -euo pipefail
source "$(dirname "$0")/_usage.sh"
[[ "${1:-} ${2:-}" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] || usage
source "$(dirname "$0")/_venv.sh"
ensure base .
processes=$1 devices=$2
shift 2
export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=$processes
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
address="127.0.0.1:${PORT:-FREE-PORT}"
free='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
logs="${LOGS:-runs/local-logs}"
if [ -n "${DRY:-}" ]; then
  quoted mkdir -p "$logs"
  for ((n = 0; n < processes; n++)); do
    command="$(quoted env "JAX_PLATFORMS=cpu" "XLA_FLAGS=$XLA_FLAGS" "JAX_COORDINATOR_ADDRESS=$address" \
      "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$n" "$PYTHON" -m "motab_jax.${VERB:-train}" "$@")"
    echo "$command > $(quoted "$logs/process-$n.log") 2>&1 &"
  done
  echo wait
  exit
fi
[ -n "${PORT:-}" ] || address="127.0.0.1:$("$PYTHON" -c "$free")"
export JAX_COORDINATOR_ADDRESS="$address"
mkdir -p "$logs"

started=() cut=
trap 'cut=yes; kill -TERM "${started[@]}" 2> /dev/null || true' TERM INT
for ((n = 0; n < processes; n++)); do
  if [ "$n" = 0 ]; then
    JAX_PROCESS_ID=$n "$PYTHON" -m "motab_jax.${VERB:-train}" "$@" > >(tee "$logs/process-$n.log") 2>&1 &
  else
    JAX_PROCESS_ID=$n "$PYTHON" -m "motab_jax.${VERB:-train}" "$@" > "$logs/process-$n.log" 2>&1 &
  fi
  started+=($!)
done

end_of() { # the status of a process; a signal to this script cuts the waiting short, not the process
  local code
  while true; do
    cut='' code=0
    wait "$1" || code=$?
    [ -n "$cut" ] || return "$code"
  done
}

# The status is that of the first process that failed; without one, 75 where one was stopped, 0 where all are done.
status=0
for ((n = 0; n < processes; n++)); do
  code=0
  end_of "${started[$n]}" || code=$?
  case "$code" in
    0) ;;
    75) if [ "$status" = 0 ]; then status=75; fi ;;
    *)
      echo "process $n left with status $code; its last words are in $logs/process-$n.log" >&2
      if [ "$status" = 0 ] || [ "$status" = 75 ]; then status=$code; fi
      ;;
  esac
done
exit "$status"
