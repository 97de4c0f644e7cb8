"""Adapt a network that comes trained: the published hyper-parameters by model.

Command:   python -m fixres_jax.convert resnet50 resnet50.pth WEIGHTS
           python -m fixres_jax.main --config configs/finetune.py:resnet50 --workdir DIR \\
             --config.init_from=WEIGHTS --config.data.source=IMAGENET
Variants:  the keys of TABLE; `:resnet50` is the default.
Accuracy:  the paper's top-1, not measured here: ResNet-50 trained at 224, 77.0 at 224 and 79.0 adapted at 384; with
           CutMix 79.7 adapted at 320; ResNeXt-101 32x48d 85.4 at 224 and 86.3 adapted at 320.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
"""

from configs import base

# model -> training and test resolution (pixels), epochs, base learning rate, batch. Source: README and scripts of the
# reference (ResNet-50, ResNet-50 CutMix, ResNeXt-101 32x48d); the others take ResNet-50's values.
RESNET50 = {'train': 224, 'test': 384, 'epochs': 56.0, 'lr': 1e-3, 'batch_size': 512}
TABLE = {
    'resnet50': RESNET50,
    'resnet50_cutmix': RESNET50 | {'test': 320, 'epochs': 11.0},
    'resnext101_32x48d': RESNET50 | {'test': 320, 'epochs': 1.0, 'batch_size': 256},
} | {
    name: RESNET50
    for name in (
        'resnet18',
        'resnet34',
        'resnet101',
        'resnet152',
        'wide_resnet50_2',
        'wide_resnet101_2',
        'resnext50_32x4d',
        'resnext101_32x4d',
        'resnext101_32x8d',
        'resnext101_64x4d',
        'resnext101_32x16d',
        'resnext101_32x32d',
    )
}


def get_config(variant: str = 'resnet50'):
    """Return the run that adapts one model; `init_from` is to be given."""
    if variant not in TABLE:
        raise ValueError(f'configs/finetune.py has no variant {variant!r}: use one of :{", :".join(TABLE)}.')
    row = TABLE[variant]
    c = base.get_config()
    c.model.name = variant.removesuffix('_cutmix')
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.adaptation = 'finetune'
    c.train.epochs = 0.0
    c.train.resolution = row['train']
    c.test.resolution = row['test']
    c.test.resolutions = (row['train'], 256, 288, 320, 384, 448)
    c.finetune.epochs = row['epochs']
    c.finetune.lr = row['lr']
    c.finetune.batch_size = row['batch_size']
    return c
