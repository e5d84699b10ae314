#!/usr/bin/env bash
# A run on a GKE cluster of TPUs through xpk, which writes the JobSet and hands it to the cluster's queue.
#
#   CLUSTER=tpus PROJECT=mine ZONE=us-west4-a IMAGE=us-docker.pkg.dev/mine/motab/motab \
#     RUNS=gs://my-bucket/runs bash launch/xpk.sh CONFIG.yaml [key=value ...]
#
# Needs: xpk, kubectl, docker, gcloud, logged in; a cluster that `xpk cluster create` made (--spot belongs there); an
# image (launch/Dockerfile); RUNS, where the runs are kept: a bucket that the pods' service account may write (Storage
# Object User), or else STORAGE, which `xpk storage attach` mounts at /runs. Optional: WORKLOAD (motab), TPU_TYPE
# (v5litepod-16), SLICES (1), GRACE (600: seconds for a step and a save), RESTARTS (100), MORE (options of xpk, such as
# --dry-run), DRY=1 (print the command instead).
# Watch:  kubectl logs -f -l xpk.google.com/workload=motab,batch.kubernetes.io/job-completion-index=0
# Stop:   xpk workload delete --workload=motab --cluster=tpus --project=mine --zone=us-west4-a
# Resume: by itself, unless the status is 2, a mistake in the configuration; after a stop, the same command.
set -euo pipefail
source "$(dirname "$0")/_usage.sh"
[ $# != 0 ] || usage
[ -n "${STORAGE:-}" ] || need RUNS
need CLUSTER PROJECT ZONE IMAGE
case "${RUNS:-}" in
  '') kept=/runs storage=(--storage="$STORAGE" --env=HF_HOME=/runs/huggingface) ;;
  gs://?*) kept="$RUNS" storage=() ;;
  *) mistake "RUNS=$RUNS is no bucket, gs://BUCKET/PATH; a storage of the cluster is named by STORAGE" ;;
esac
read -ra more <<< "${MORE:-}"

# The shell that xpk writes around the command passes SIGTERM to what it started: `exec` makes that the run itself.
# 75 is a stop after saving, 1 a crash or a process that lost another; 42 and 127 to 255 start again by xpk's own rule.
act exec xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --workload="${WORKLOAD:-motab}" --tpu-type="${TPU_TYPE:-v5litepod-16}" --num-slices="${SLICES:-1}" \
  --docker-image="$IMAGE" ${storage[@]+"${storage[@]}"} \
  --max-restarts="${RESTARTS:-100}" --restart-on-exit-codes=1,75 --termination-grace-period-seconds="${GRACE:-600}" \
  --command="exec python -m motab_jax.train$(printf ' %q' "run.dir=$kept" run.start_seconds=1800 "$@")" ${more[@]+"${more[@]}"}
