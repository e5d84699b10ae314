#!/usr/bin/env bash
# A run on a Cloud TPU VM that has to be waited for, and that is asked for again whenever it is taken away.
#
#   NAME=motab ZONE=us-west4-a RUNS=gs://my-bucket/runs SPOT=1 bash launch/queued_resource.sh CONFIG.yaml [key=value ...]
#
# Needs: what tpu_vm.sh needs, which starts the run once the VM is there; the variables are the same. Optional: POLL
# (60: seconds between two questions), DRY=1 (print the commands instead). Ends when the run is done, or fails on a VM
# that is still there. On a new VM the run goes on from its last checkpoint (run.save_every).
# Watch:  gcloud compute tpus queued-resources describe motab --zone=us-west4-a, and then as tpu_vm.sh says
# Stop:   as tpu_vm.sh says
# Resume: the same command. Give back: gcloud compute tpus queued-resources delete motab --zone=us-west4-a --force
set -euo pipefail
source "$(dirname "$0")/_usage.sh"
[ $# != 0 ] || usage
RUNS="${RUNS:-${NFS:-}}"
need NAME ZONE RUNS
export RUNS
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
queue() { gcloud compute tpus queued-resources "$1" "$NAME" "${where[@]}" "${@:2}"; }
vm_is_ready() {
  [ "$(gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(state)' 2> /dev/null)" = READY ]
}
create() {
  act gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" ${SPOT:+--spot} \
    --accelerator-type="${ACCELERATOR:-v5litepod-16}" --runtime-version="${VERSION:-v2-alpha-tpuv5-lite}"
}
if [ -n "${DRY:-}" ]; then
  echo "# where $NAME isn't asked for yet, and again whenever it is taken away:"
  create
  echo "# once it is there:"
  exec bash "$(dirname "$0")/tpu_vm.sh" "$@"
fi

while true; do
  state="$(queue describe --format='value(state.state)' 2> /dev/null || true)"
  case "$state" in
    "") create ;;
    FAILED)
      queue describe >&2
      echo "error: the request failed; delete it, mend what it says, and ask again" >&2
      exit 1
      ;;
    SUSPENDED) queue delete --force --quiet ;;
    ACTIVE)
      if vm_is_ready; then
        status=0
        bash "$(dirname "$0")/tpu_vm.sh" "$@" || status=$?
        case "$status" in 0 | 2) exit "$status" ;; esac
        sleep "${POLL:-60}" # a VM that is taken away looks ready for a moment still
        if vm_is_ready; then exit "$status"; fi
      fi
      ;;
  esac
  echo "$NAME: ${state:-asked for}" >&2
  sleep "${POLL:-60}"
done
