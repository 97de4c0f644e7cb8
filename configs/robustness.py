"""What larger images and the adaptation are worth off-distribution: the study `robustness` of a network.

Command:   python -m fixres_jax.main --config configs/robustness.py --workdir DIR --config.init_from=RUN \
             --config.data.source=IMAGES
           RUN is the workdir of a recipe; or any network, such as a folder of `fixres convert`, with
           --config.test.resolution, to which the study adapts it. IMAGES are those that the network is adapted on
           (train) and tested on (val). The share that is held out, and the seed, must be those of the run.
Variants of ImageNet, of folders or of tensorflow-datasets, are added by
           --config.analyze.variants="('v2=tfds:imagenet_v2', 'r=tfds:imagenet_r', 'a=IMAGENET-A', 'sketch=SKETCH')"
Stopped, the same command goes on: each corruption at each strength is kept when it is done.
Measured:  docs/results.md.
"""

from configs import base


def get_config():
    """Return the study of a run that held out a tenth."""
    c = base.get_config()
    c.task = 'analyze'
    c.study = 'robustness'
    c.data.source = 'images'
    c.data.held_out_fraction = 0.1
    c.finetune.batch_size = 0
    c.analyze.images = 1000
    return c
