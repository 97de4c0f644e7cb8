#!/usr/bin/env bash
# One task per GPU on any number of nodes, requeued until the run is done:
#   sbatch --nodes=2 --gres=gpu:8 --ntasks-per-node=8 --cpus-per-task=8 launch/slurm.sh --config configs/resnet50.py --workdir DIR ...
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
# Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch by itself: a task would get one core.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# Every task sees all GPUs of its node (--gres, not --gpus-per-task) and takes the one of its local rank. A task that fails
# ends the others through jax.distributed: if Slurm did (--kill-on-bad-exit), tasks that were stopped would kill each other
# at their very end.
code=0
srun --kill-on-bad-exit=0 "$python" -m fixres_jax.main --distributed "$@" || code=$?

# 75: stopped by SIGTERM before the end, and the same command goes on. 0 is the end; any other code, the highest of all
# tasks, is an error that a requeue would repeat.
if [[ $code == 75 ]]; then
  echo 'The run is not finished: the job is requeued.'
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
