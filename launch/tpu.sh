#!/usr/bin/env bash
# A TPU slice by queued resources: created, set up and started on all its workers, and deleted, by
#   launch/tpu.sh create NAME ZONE v5litepod-16 [RUNTIME]
#   launch/tpu.sh setup  NAME ZONE REPOSITORY_URL
#   launch/tpu.sh run    NAME ZONE --config configs/resnet50.py --workdir gs://BUCKET/run ...
#   launch/tpu.sh delete NAME ZONE
# `run` is also how a run goes on, after a preemption for example.
set -euo pipefail

if (($# < 3)); then
  sed -n '2,8p' "$0" >&2
  exit 2
fi
action=$1 name=$2 zone=$3
shift 3

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

case $action in
create)
  gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$1" --runtime-version="${2:-v2-alpha-tpuv5-lite}" --spot
  echo "Wait until this says ACTIVE: gcloud compute tpus queued-resources describe $name --zone=$zone"
  ;;
setup)
  on_all_workers "git clone --depth 1 $(printf %q "$1") fixres-jax && cd fixres-jax && python3 -m venv .venv &&
    .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
  ;;
run)
  # One process per worker. JAX finds the others, and their order, from the slice's metadata.
  on_all_workers "cd fixres-jax && JAX_COMPILATION_CACHE_DIR=/tmp/fixres_jax_cache \
    .venv/bin/python -m fixres_jax.main --distributed$(printf ' %q' "$@")"
  ;;
delete)
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
  ;;
*)
  echo "launch/tpu.sh: there is no action '$action': use create, setup, run or delete." >&2
  exit 2
  ;;
esac
