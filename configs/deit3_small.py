"""ViT-S by DeiT III: 800 epochs at 224, LAMB, 3-Augment, mixtures, binary cross entropy.

Command:   python -m fixres_jax.main --config configs/deit3_small.py --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Hardware:  8 accelerators; batch 2048, mixed in groups of 256 images, as its authors on 8 GPUs.
Accuracy:  published, nothing adapted: 81.4 at 224 (README_revenge.md of facebookresearch/deit). Not run here. There
           is no BatchNorm: the adaptation fits the classifier alone.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    Touvron, Cord and Jégou 2022; README_revenge.md, main.py and engine.py of that repository.
"""

from configs import base


def get_config():
    """Return the run."""
    c = base.get_config()
    c.model.name = 'deit3_small_patch16_224'
    c.model.bn_group_size = 256
    c.model.drop_path = 0.05
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.epochs = 800.0
    c.train.repeats = 3
    c.train.batch_size = 2048
    c.train.optimizer = 'lamb'
    c.train.clip_norm = 1.0
    c.train.lr = 4e-3
    c.train.lr_rule = 'none'
    c.train.schedule = 'cosine'
    c.train.schedule_every = 'epoch'
    c.train.final_lr = 1e-5
    c.train.warmup_epochs = 5.0
    c.train.warmup_lr = 1e-6
    c.train.warmup_prefix = False
    c.train.weight_decay = 0.05
    c.train.weight_decay_on = 'kernels'
    c.train.loss = 'bce'
    c.train.bce_threshold = 0.0
    c.train.interpolation = 'bicubic'
    c.train.augment = '3augment'
    c.train.jitter = 0.3
    c.train.mixing.mixup = 0.8
    c.train.mixing.cutmix = 1.0
    c.test.interpolation = 'bicubic'
    c.test.resize_ratio = 1.0
    c.test.resolutions = (192, 224, 256, 288, 320)
    return c
