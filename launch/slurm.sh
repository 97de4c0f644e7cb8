#!/usr/bin/env bash
# One task per GPU on any number of nodes, requeued until the run is done:
#   sbatch --nodes=2 --gres=gpu:8 --ntasks-per-node=8 launch/slurm.sh --config configs/resnet50.py --workdir DIR ...
# The options after the script's name are those of fixres_jax.main. Run it from the root of the checkout.
#SBATCH --job-name=fixres
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=12:00:00
# The notice of the end, 300 s before the time limit; a preemption sends the same signal.
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

# PYTHON names the interpreter of the environment that holds requirements.txt.
python=${PYTHON:-.venv/bin/python}
# Compiled programs are kept here and found again after a requeue.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/fixres_jax}

workdir=''
previous=''
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
  [[ $previous == --workdir ]] && workdir=$argument
  previous=$argument
done
if [[ -z $workdir ]]; then
  echo 'launch/slurm.sh: --workdir is missing.' >&2
  exit 2
fi

# Every task sees all GPUs of its node (--gres, not --gpus-per-task) and takes the one of its local rank.
if srun --kill-on-bad-exit=1 "$python" -m fixres_jax.main --distributed "$@"; then code=0; else code=$?; fi

# A run that was told to stop exits with 0 and leaves no ${FINISHED} behind: the same job goes on with it.
finished=$workdir/${FINISHED:-report.json}
if [[ $code == 0 && ! -e $finished ]]; then
  echo "$finished is not there yet: the job is requeued."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
