#!/usr/bin/env bash
# A TPU slice by queued resources: created, set up and started on all its workers, followed, stopped and deleted, by
#   launch/tpu.sh create NAME ZONE v5litepod-16 [RUNTIME [OPTION OF gcloud ...]]
#   launch/tpu.sh setup  NAME ZONE REPOSITORY_URL
#   launch/tpu.sh run    NAME ZONE --config configs/resnet50.py --workdir gs://BUCKET/run ...
#   launch/tpu.sh follow NAME ZONE
#   launch/tpu.sh stop   NAME ZONE
#   launch/tpu.sh delete NAME ZONE
# `setup` again brings the newest commit. `run` starts and follows the log of worker 0: Ctrl-C or a lost connection ends
# that alone, the run goes on, and `follow` shows it again. `run` is also how a run that was stopped or preempted goes on.
set -euo pipefail

if (($# < 3)); then
  sed -n '2,10p' "$0" >&2
  exit 2
fi
action=$1 name=$2 zone=$3
shift 3

on_workers() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

# On the workers: the process of the run holds ~/fixres.lock, its number is in ~/fixres.pid, what it prints in ~/fixres.log.
# shellcheck disable=SC2016 # $(...) is for the workers
follow='tail --pid="$(cat ~/fixres.pid)" --lines=100 --retry --follow=name ~/fixres.log'

case $action in
create)
  gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$1" --runtime-version="${2:-v2-alpha-tpuv5-lite}" --spot "${@:3}"
  echo "Wait until this says ACTIVE: gcloud compute tpus queued-resources describe $name --zone=$zone"
  ;;
setup)
  # The images of TPU VMs come with an older Python than the program takes: uv brings one.
  on_workers all "set -e
    if [ ! -d fixres-jax ]; then git clone --quiet --depth 1 $(printf %q "$1") fixres-jax; fi
    cd fixres-jax
    git fetch --quiet --depth 1 $(printf %q "$1") HEAD
    git reset --quiet --hard FETCH_HEAD
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user --upgrade uv
    python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gcs]'"
  ;;
run)
  # One process per worker. JAX finds the others, and their order, from the slice's metadata.
  on_workers all "cd fixres-jax || exit 2
    if ! flock --nonblock ~/fixres.lock true; then
      echo 'launch/tpu.sh: a run goes on here: follow it, or stop it first.' >&2
      exit 2
    fi
    JAX_COMPILATION_CACHE_DIR=/tmp/fixres_jax_cache setsid nohup flock --nonblock --no-fork ~/fixres.lock \
      .venv/bin/python -m fixres_jax.main --distributed$(printf ' %q' "$@") </dev/null >>~/fixres.log 2>&1 &
    echo \$! >~/fixres.pid"
  on_workers 0 "$follow"
  ;;
follow)
  on_workers 0 "$follow"
  ;;
stop)
  # The run saves and ends.
  # shellcheck disable=SC2016 # as above
  on_workers all 'flock --nonblock ~/fixres.lock true || kill -TERM "$(cat ~/fixres.pid)"'
  on_workers 0 "$follow"
  ;;
delete)
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
  ;;
*)
  echo "launch/tpu.sh: there is no action '$action': use create, setup, run, follow, stop or delete." >&2
  exit 2
  ;;
esac
