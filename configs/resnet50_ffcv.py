"""ResNet-50 in few epochs, as FFCV trains it: images of 160 pixels, then 192, a large batch and a linear schedule.

Command:   python -m fixres_jax.main --config configs/resnet50_ffcv.py:16 --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Variants:  :16 (the default), :24, :32, :40, :56 and :88, the epochs.
Hardware:  8 accelerators; batch 4096, BatchNorm in groups of 512 images, as FFCV on 8 GPUs.
Accuracy:  FFCV's top-1, tested at 256 and averaged over mirror images, without adaptation: 73.8, 75.6, 76.6, 77.2, 78.0
           and 78.4 in the order of the variants (the table of github.com/libffcv/ffcv-imagenet; 15 to 77 minutes on
           8 A100). Not run here. Expect less before the adaptation: see below.
Different: FFCV blurs before strided convolutions (use_blurpool=1), which this network does not; it scores the mean over
           an image and its mirror image, and does not decay the norms named bn: those of the shortcuts it does.
           Its data set holds half of the images as JPEG of quality 90 and at most 500 pixels a side.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    rn50_configs/*.yaml and train_imagenet.py of that repository.
"""

from configs import base

# Epochs -> the first of 192 pixels: where its ramp from 160 to 192 is rounded up to a multiple of 32.
LARGER_FROM = {'16': 12, '24': 19, '32': 25, '40': 32, '56': 45, '88': 71}


def get_config(variant: str = '16'):
    """Return the run of a number of epochs."""
    if variant not in LARGER_FROM:
        raise ValueError(f'configs/resnet50_ffcv.py has no variant {variant!r}: use one of :{", ".join(LARGER_FROM)}.')
    epochs = int(variant)
    c = base.get_config()
    c.model.name = 'resnet50'
    c.model.bn_group_size = 512
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.resolution = 192
    c.train.progressive = ((LARGER_FROM[variant] / epochs, 160),)
    c.train.epochs = float(epochs)
    c.train.batch_size = 4096
    c.train.lr = 1.7
    c.train.lr_rule = 'none'
    c.train.schedule = 'polynomial'  # of power 1: a line to zero
    c.train.warmup_epochs = 2.0
    c.train.warmup_lr = 1.7e-4
    c.train.weight_decay = 1e-4
    c.train.weight_decay_on = 'not_norms'
    c.train.label_smoothing = 0.1
    c.train.jitter = 0.0
    c.test.resolutions = (160, 192, 224, 256, 288, 320)
    return c
