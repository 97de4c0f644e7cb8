#!/usr/bin/env bash
# One machine with one or more GPUs, one process for all of them; the same command goes on with a run that was stopped:
#   launch/gpu.sh --config configs/resnet50.py --workdir DIR ...
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/fixres_jax}
exec "$python" -m fixres_jax.main "$@"
