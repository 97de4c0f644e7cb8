"""How often a network says the same in bfloat16 as in float32, on photographs.

    python benchmarks/bfloat16.py runs/imagenette photographs/ --resolutions 128 160 224

RUN is a workdir or converted weights; FOLDER is searched for image files. For each resolution it prints the share of
images with the same top-1 class, how sure float32 was of the others, and the largest difference of a logit as a
fraction of the logits' scale.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fixres_jax import models
from fixres_jax.data import transforms
from fixres_jax.weights import checkpoint, network

IMAGES = ('.jpg', '.jpeg', '.png')


def read(folder: str, resolution: int, resize_ratio: float) -> np.ndarray:
    """Return the images of a folder under the test transform, uint8[N, R, R, 3]."""
    transform, rng = transforms.make_test(resolution, resize_ratio), np.random.default_rng(0)
    paths = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in IMAGES)
    return np.stack([
        transform(transforms.decode(path.read_bytes(), str(path), i), rng) for i, path in enumerate(paths)
    ])  # fmt: skip


def logits(run: str, images: np.ndarray, dtype: jnp.dtype, batch_size: int) -> np.ndarray:
    """Return float32[N, K] of a network that computes in a dtype."""
    loaded = network.load(run, dtype=dtype)
    apply = jax.jit(lambda variables, images: loaded.model.apply(variables, images, models.EVAL)[0])
    return np.concatenate(
        [np.asarray(apply(loaded.variables, images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
    )


def compare(exact: np.ndarray, rounded: np.ndarray) -> dict[str, float]:
    """Compare the logits of two dtypes."""
    same = exact.argmax(1) == rounded.argmax(1)
    probabilities = np.sort(np.asarray(jax.nn.softmax(exact)), axis=1)
    margins = probabilities[:, -1] - probabilities[:, -2]
    return {
        'images': len(exact),
        'same_top1': float(same.mean()),
        'largest_margin_of_the_others': float(margins[~same].max(initial=0.0)),
        'largest_difference': float(np.abs(exact - rounded).max() / np.abs(exact).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', help='a workdir or converted weights')
    parser.add_argument('folder', help='searched for image files')
    parser.add_argument('--resolutions', type=int, nargs='+', default=[224], help='pixels')
    parser.add_argument('--batch_size', type=int, default=50)
    args = parser.parse_args()
    for resolution in args.resolutions:
        images = read(args.folder, resolution, checkpoint.load_metadata(args.run)['resize_ratio'])
        exact, rounded = (logits(args.run, images, dtype, args.batch_size) for dtype in (jnp.float32, jnp.bfloat16))
        print(json.dumps({'resolution': resolution} | compare(exact, rounded)), flush=True)


if __name__ == '__main__':
    main()
