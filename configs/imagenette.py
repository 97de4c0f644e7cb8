"""Imagenette: ten classes of ImageNet, 9,469 training and 3,925 validation photographs, in a folder of class folders.

Command:   python -m fixres_jax.main --config configs/imagenette.py:small --workdir DIR --config.data.source=IMAGENETTE
           IMAGENETTE holds train/ and val/ (https://github.com/fastai/imagenette).
Variants:  :small     resnet18 of half width, trained at 64, 80 and then 96: for a CPU.
           :plain     the same network trained at 96 throughout.
           :resnet50  the whole ResNet-50, trained at 128: for an accelerator.
Measured:  :small with test.resolution=128, two seeds, half an hour each on one core: 78.7 at 96, 80.7 at 128, 81.3
           adapted at 128, control 78.7. :plain on two cores that did other work too, 65 minutes with a sweep of nine
           sizes: 80.1 at 96, 80.4 at 160, 83.6 adapted at 160 (version 0.1.0). docs/results.md has both.
           :resnet50 has not been run.
"""

from configs import base


def get_config(variant: str = 'small'):
    """Return the run of one variant."""
    c = base.get_config()
    c.data.source = 'imagenette'
    c.data.held_out_fraction = 0.1
    c.data.threads = 4
    c.train.batch_size = 128
    c.train.lr = 0.1
    c.train.lr_rule = 'batch/256'
    c.train.schedule = 'cosine'
    c.train.warmup_epochs = 2.0
    c.train.weight_decay = 5e-4
    c.finetune.epochs = 20.0
    c.finetune.batch_size = 128
    if variant in ('small', 'plain'):
        c.model.name = 'resnet18'
        c.model.width = 32
        c.train.resolution = 96
        c.train.epochs = 30.0
        c.test.resolutions = (64, 80, 96, 112, 128, 144, 160, 192, 224)
        if variant == 'small':
            c.train.progressive = ((0.3333, 64), (0.6667, 80))
            c.train.epochs = 24.0
    elif variant == 'resnet50':
        c.model.name = 'resnet50'
        c.train.resolution = 128
        c.train.epochs = 100.0
        c.train.batch_size = 256
        c.finetune.batch_size = 256
        c.test.resolutions = (96, 112, 128, 144, 160, 176, 192, 224, 256)
    else:
        raise ValueError(f'configs/imagenette.py has no variant {variant!r}: use :small, :plain or :resnet50.')
    return c
