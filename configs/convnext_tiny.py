"""ConvNeXt-T as its authors train it: AdamW, RandAugment, mixtures, random erasing, drop path, an average.

Command:   python -m fixres_jax.main --config configs/convnext_tiny.py --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Hardware:  32 accelerators; batch 4096, mixed in groups of 128 images, as its authors on 32 GPUs.
Accuracy:  published, nothing adapted: 82.1 at 224 (table 1 of the paper). Not run here. There is no BatchNorm: the
           adaptation fits the classifier alone.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    Liu et al. 2022, table 5; github.com/facebookresearch/ConvNeXt, TRAINING.md.
"""

from configs import base


def get_config():
    """Return the run."""
    c = base.get_config()
    c.model.name = 'convnext_tiny'
    c.model.bn_group_size = 128
    c.model.drop_path = 0.1
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.epochs = 300.0
    c.train.batch_size = 4096
    c.train.optimizer = 'adamw'
    c.train.lr = 4e-3
    c.train.lr_rule = 'none'
    c.train.schedule = 'cosine'
    c.train.final_lr = 1e-6
    c.train.warmup_epochs = 20.0
    c.train.weight_decay = 0.05
    c.train.weight_decay_on = 'kernels'
    c.train.label_smoothing = 0.1
    c.train.interpolation = 'bicubic'
    c.train.augment = 'rand-m9-mstd0.5-inc1'
    c.train.jitter = 0.0
    c.train.mixing.mixup = 0.8
    c.train.mixing.cutmix = 1.0
    c.train.mixing.erasing = 0.25
    c.train.mixing.erasing_fill = 'noise'
    c.train.ema.decay = 0.9999
    c.test.interpolation = 'bicubic'
    c.test.resolutions = (192, 224, 256, 288, 320)
    return c
