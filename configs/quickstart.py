"""The whole method on an embedded data set: JPEG files that the program draws itself.

Command:   python -m fixres_jax.main --config configs/quickstart.py --workdir /tmp/quickstart
Measured:  two CPU cores, seed 0: 76.8 at 64, 74.8 at 96, 82.7 adapted at 96 (2,000 test images, each known to about 2
           points). Three seeds: docs/results.md.
Sizes:     it trains at a multiple of 32, its stride. Trained at 48 it sees maps of 3x3 before its last stride, whose
           windows then hang over the border on both sides; they do so at no other size near, and without adaptation 44
           loses 4 points, 52 6 and 64 10.
"""

from configs import base


def get_config():
    """Return a run small enough for two cores."""
    c = base.get_config()
    c.log_every_steps = 50
    c.checkpoint_every_steps = 100
    c.compilation_cache = 'cache'
    c.model.name = 'resnet18'
    c.model.width = 16
    c.data.source = 'drawings'
    c.data.held_out_fraction = 0.1
    c.train.resolution = 64
    c.train.epochs = 24.0
    c.train.batch_size = 64
    c.train.lr = 0.1
    c.train.lr_rule = 'none'
    c.train.schedule = 'cosine'
    c.train.warmup_epochs = 1.0
    c.train.weight_decay = 5e-4
    c.test.resolutions = (48, 64, 80, 96, 112, 128)
    c.analyze.images = 500
    c.finetune.epochs = 3.0
    c.finetune.batch_size = 64
    c.finetune.lr = 0.02
    c.finetune.lr_rule = 'none'
    c.finetune.schedule = 'cosine'
    return c
