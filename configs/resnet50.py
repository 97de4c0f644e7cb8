"""The paper's recipe: ResNet-50 on ImageNet, trained small, adapted at the test resolution that suits it.

Command:   python -m fixres_jax.main --config configs/resnet50.py:128 --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders.
Variants:  :128, :160, :224 (the default) and :384, the training resolution.
Hardware:  8 accelerators; batch 512, BatchNorm in groups of 64 images, as the reference on 8 GPUs.
Accuracy:  the paper's top-1, not measured here. Trained at 224: 77.0 at 224, 78.4 at 288 without adaptation, 79.0 at
           384 with it. Trained at 128 and adapted: 77.1.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
"""

from configs import base

# Resolutions of the sweep, pixels: from the training size to about twice that, in multiples of the network's stride.
RESOLUTIONS = {
    '128': (96, 128, 160, 192, 224, 256, 288),
    '160': (128, 160, 192, 224, 256, 288, 320),
    '224': (128, 160, 224, 256, 288, 320, 352, 384, 448),
    '384': (288, 320, 384, 416, 448, 480, 512, 576),
}


def get_config(variant: str = '224'):
    """Return the recipe for one training resolution."""
    if variant not in RESOLUTIONS:
        raise ValueError(f'configs/resnet50.py has no variant {variant!r}: use one of :{", :".join(RESOLUTIONS)}.')
    c = base.get_config()
    c.model.name = 'resnet50'
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.resolution = int(variant)
    # "120 epochs" of 5005 * 512 samples, each image three times in a batch: 240 in samples seen (reference).
    c.train.repeats = 3
    c.train.epochs = 240.0
    c.train.decay_every_epochs = 60.0
    c.test.resolutions = RESOLUTIONS[variant]
    return c
