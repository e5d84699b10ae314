#!/usr/bin/env bash
# A run on a Cloud TPU VM, one host or a slice of many: the same command on all of its workers.
#
#   NAME=motab ZONE=us-west4-a RUNS=gs://my-bucket/runs bash launch/tpu_vm.sh CONFIG.yaml [key=value ...]
#
# Needs: gcloud, logged in, its key in the agent (ssh-add ~/.ssh/google_compute_engine); git; RUNS, where the runs are
# kept: a bucket that the VM's service account may write (Storage Object User), or a share that the VM reaches
# (RUNS=10.0.0.2:/runs, Filestore, say). Makes the VM where there is none, copies this checkout as it lies here,
# installs, starts and waits; the status is the run's. Optional: PROJECT, ACCELERATOR (v5litepod-16), VERSION (its
# runtime), SPOT=1, GRACE (600: seconds for a step and a save), DRY=1 (print the commands instead).
# Watch:  gcloud compute tpus tpu-vm ssh motab --zone=us-west4-a --worker=0 --command='sudo journalctl -fu motab'
# Stop:   gcloud compute tpus tpu-vm ssh motab --zone=us-west4-a --worker=all --command='sudo systemctl stop motab'
# Resume: the same command. The VM stays: gcloud compute tpus tpu-vm delete motab --zone=us-west4-a
set -euo pipefail
source "$(dirname "$0")/_usage.sh"
[ $# != 0 ] || usage
RUNS="${RUNS:-${NFS:-}}"
need NAME ZONE RUNS
cd "$(dirname "$0")/.."
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
on_all() { act gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"; }

# A bucket is used as it is, and each host keeps its downloads. A share is mounted at /runs and keeps those of all.
case "$RUNS" in
  gs://?*) kept="$RUNS" mount='' locks='tpu gcs' variables='' ;;
  *://*) mistake "RUNS=$RUNS is neither a bucket, gs://BUCKET/PATH, nor a share, HOST:/PATH" ;;
  ?*:/*)
    kept=/runs locks=tpu variables=--setenv=HF_HOME=/runs/huggingface
    mount="mountpoint -q /runs || {
  sudo apt-get install -qq -y nfs-common; sudo mkdir -p /runs; sudo mount -t nfs $(quoted "$RUNS") /runs; }"
    ;;
  *) mistake "RUNS=$RUNS is neither a bucket, gs://BUCKET/PATH, nor a share, HOST:/PATH" ;;
esac

create=(gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" ${SPOT:+--spot}
  --accelerator-type="${ACCELERATOR:-v5litepod-16}" --version="${VERSION:-v2-alpha-tpuv5-lite}")
if [ -n "${DRY:-}" ]; then
  echo "# where there is no VM $NAME yet:"
  act "${create[@]}"
elif ! gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" > /dev/null 2>&1; then
  "${create[@]}"
fi

# The checkout with what isn't committed, such as a recipe of yours, and without what git ignores.
if [ -n "${DRY:-}" ]; then
  scratch=SCRATCH
  echo "# $PWD, with what isn't committed and without what git ignores, as $scratch/motab.tgz:"
else
  scratch="$(mktemp -d)"
  trap 'rm -rf "$scratch"' EXIT
  GIT_INDEX_FILE="$scratch/index" git add --all
  git archive --format=tgz --output="$scratch/motab.tgz" "$(GIT_INDEX_FILE="$scratch/index" git write-tree)"
fi
act gcloud compute tpus tpu-vm scp "$scratch/motab.tgz" "$NAME:motab.tgz" "${where[@]}" --worker=all

on_all "set -e
if systemctl is-active --quiet motab; then echo 'error: a run is on its way on $NAME; stop it first' >&2; exit 2; fi
${mount:+$mount
}rm -rf motab; mkdir motab; tar -xzf motab.tgz -C motab; cd motab
for lock in $locks; do bash launch/install.sh \$lock; done"

# A unit of systemd outlives a broken connection, and when the VM is shut down it gets SIGTERM and time to save. gcloud
# repeats a command whose connection broke, so starting and waiting are two commands, each harmless when repeated.
on_all "systemctl is-active --quiet motab || {
sudo systemctl reset-failed motab 2> /dev/null
sudo systemd-run --quiet --unit=motab --uid=\$(id -u) --gid=\$(id -g) --working-directory=\$HOME/motab \
--setenv=HOME=\$HOME ${variables:+$variables }--property=LimitMEMLOCK=infinity \
--property=KillMode=mixed --property=TimeoutStopSec=${GRACE:-600} \
\$HOME/motab/.venv/bin/python -m motab_jax.train $(quoted "run.dir=$kept" run.start_seconds=1800 "$@"); }"
on_all "until systemctl is-active motab | grep -qE '^(inactive|failed|unknown)'; do sleep 5; done
exit \$(systemctl show motab --property=ExecMainStatus --value)"
