"""Seconds and memory of converting torch weights, beside the size of the file.

    python benchmarks/convert.py --model resnext101_32x48d --format zip

The weights are random and written first, with torch; only the conversion is measured, in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fixres_jax import models
from fixres_jax.weights import state_dicts, torch_weights


def write(path: Path, name: str, zipped: bool) -> None:
    """Write random weights of an architecture."""
    rng = np.random.default_rng(0)
    shapes = torch_weights.torch_shapes(models.create(name))
    arrays = {key: rng.random(leaf.shape, np.float32) for key, leaf in shapes.items()}
    if path.suffix == '.safetensors':
        state_dicts.save(path, arrays, {})
    else:
        import torch

        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnext101_32x48d', choices=models.ARCHITECTURES)
    parser.add_argument('--format', default='zip', choices=('zip', 'legacy', 'safetensors'))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ('w.safetensors' if args.format == 'safetensors' else 'w.pth')
        write(path, args.model, args.format == 'zip')
        began = time.monotonic()
        size = len(path.read_bytes())
        reading = time.monotonic() - began
        began = time.monotonic()
        command = [sys.executable, '-m', 'fixres_jax.convert', args.model, path, Path(folder) / 'out']
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        assert status == 0, status
    print(
        json.dumps(
            {
                'model': args.model,
                'format': args.format,
                'file_gb': round(size / 1e9, 2),
                'reading_seconds': round(reading, 1),
                'convert_seconds': round(seconds, 1),
                'processor_seconds': round(used.ru_utime + used.ru_stime, 1),
                'peak_memory_over_file': round(used.ru_maxrss * 1024 / size, 2),
            }
        )  # fmt: skip
    )


if __name__ == '__main__':
    main()
