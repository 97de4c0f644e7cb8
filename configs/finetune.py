"""Adapt a network that comes trained: a row by model. As it is, fitted to the images; with `,paper`, as was published.

Command:   fixres convert resnet50 resnet50.pth WEIGHTS
           fixres run --config finetune:resnet50 --workdir DIR --config.init_from=WEIGHTS --config.data.source=DATA
Variants:  the keys of TABLE; `:resnet50` is the default. It adapts in one pass, with batches and readers that fit the
           images and the machine. `:resnet50,paper`, or `:paper`, fine-tunes with the published hyper-parameters:
           batches of 512, for ImageNet and eight accelerators.
Accuracy:  the paper's top-1, not measured here: ResNet-50 trained at 224, 77.0 at 224 and 79.0 adapted at 384; with
           CutMix 79.7 adapted at 320; ResNeXt-101 32x48d 85.4 at 224 and 86.3 adapted at 320. EfficientNets: see
           EFFICIENTNETS; PNASNet-5-Large 82.7 at 331 and 83.7 adapted at 480. Of those in MOBILE, OTHERS and LAYER_NORM
           none is published.
Time:      not measured here. `fixres dryrun` estimates it for a topology; `fixres adapt` says it before it begins.
"""

from configs import base

# model -> training and test resolution (pixels), epochs, base learning rate, batch. Source: README and scripts of the
# reference (ResNet-50, ResNet-50 CutMix, ResNeXt-101 32x48d); the others take ResNet-50's values.
RESNET50 = {'train': 224, 'test': 384, 'epochs': 56.0, 'lr': 1e-3, 'batch_size': 512}
RESNET50 |= {'sizes': (224, 256, 288, 320, 384, 448)}  # of the curve
TABLE = {
    'resnet50': RESNET50,
    'resnet50_cutmix': RESNET50 | {'name': 'resnet50', 'test': 320, 'epochs': 11.0},
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

# tf_efficientnet_*: (training resolution, test resolution, FixEfficientNet's top-1 without extra data, and from
# noisy-student weights, percent; None where none is published). Source: README of the reference, whose fine-tuning adds
# label smoothing and has no dropout. Where no size is published, 1.25 times that of training stands, a multiple of 32.
EFFICIENTNETS = {
    'b0': (224, 320, 79.3, 80.2),
    'b1': (240, 384, 81.3, 82.6),
    'b2': (260, 420, 82.0, 83.6),
    'b3': (300, 472, 83.0, 85.0),
    'b4': (380, 512, 84.0, 85.9),  # noisy student's at 472: the variant tf_efficientnet_b4_ns
    'b5': (456, 576, 84.7, 86.4),
    'b6': (528, 576, 84.9, 86.7),  # noisy student's at 680: the variant tf_efficientnet_b6_ns
    'b7': (600, 632, 85.3, 87.1),
    'b8': (672, 800, 85.7, None),
    'l2': (475, 600, None, 88.5),
    'lite0': (224, 288, None, None),
    'lite1': (240, 288, None, None),
    'lite2': (260, 320, None, None),
    'lite3': (280, 352, None, None),
    'lite4': (300, 384, None, None),
}
EFFICIENTNET = RESNET50 | {'model': {'dropout': 0.0}, 'finetune': {'label_smoothing': 0.1}}
TABLE |= {
    f'{prefix}efficientnet_{name}': EFFICIENTNET | {'train': train, 'test': test, 'sizes': (train, test)}
    for prefix in ('tf_', '')
    for name, (train, test, _, _) in EFFICIENTNETS.items()
}
TABLE |= {
    f'{name}_ns': TABLE[name] | {'name': name, 'test': test, 'sizes': (TABLE[name]['train'], test)}
    for name, test in {'tf_efficientnet_b4': 472, 'tf_efficientnet_b6': 680}.items()
}

# Training and test resolution. Nobody has published the accuracy of these adapted. EfficientNetV2 is tested where its
# authors do, who adapt nothing: 78.386, 83.900 and 85.208 there, and 76.876, 83.162 and 84.554 at the size of training
# (timm, results/results-imagenet.csv). MobileNets: 1.25 times the size of training, a multiple of 32.
MOBILE = {
    'tf_efficientnetv2_b0': (192, 224),
    'tf_efficientnetv2_s': (300, 384),
    'tf_efficientnetv2_m': (384, 480),
    'mobilenetv2_100': (224, 288),
    'mobilenetv3_large_100': (224, 288),
    'tf_mobilenetv3_large_100': (224, 288),
}
TABLE |= {
    name: EFFICIENTNET | {'train': train, 'test': test, 'sizes': (train, test)}
    for name, (train, test) in MOBILE.items()
}

# Training and test resolution; the second is 1.25 times the first, a multiple of 32. Source of the first: timm 1.0.31.
# Nobody has published the ImageNet accuracy of these adapted. The paper adapts Inception-ResNet-v2 on Oxford Flowers,
# from 95.0 to 95.7 percent. With nothing adapted densenet121.ra_in1k has 75.574 at 224, and at 288, of a larger crop,
# 76.486.
OTHERS = {
    'inception_resnet_v2': (299, 384),
    'inception_v3': (299, 384),
    'densenet121': (224, 288),
    'densenet169': (224, 288),
    'vgg16_bn': (224, 288),
}
TABLE |= {
    name: RESNET50 | {'model': {'dropout': 0.0}, 'train': train, 'test': test, 'sizes': (train, test)}
    for name, (train, test) in OTHERS.items()
}

# FixPNASNet: 83.7 at 480 (82.7 at 331 before). Source: README and scripts of the reference, sizes of the curve: the
# paper. Dropout stays at the network's 0.5, as there.
TABLE['pnasnet5large'] = RESNET50 | {
    'train': 331, 'test': 480, 'sizes': (331, 384, 395, 416, 448, 480), 'epochs': 1.0, 'lr': 1e-4,
}  # fmt: skip
# AmoebaNet-B: 84.4 at 480, without an adaptation (Huang et al. 2019, GPipe), of weights that are not released; none is
# published for an adapted or a small one. Test sizes: 1.25 times that of training, a multiple of 32.
TABLE |= {
    'amoebanet_b': RESNET50 | {'train': 480, 'test': 608, 'sizes': (480, 544, 608)},
    'amoebanet_b_small': RESNET50 | {'test': 288, 'sizes': (224, 256, 288)},
}
# Relatives of the ResNet: training resolution, and the larger one of the test. None has a published accuracy of this
# fine-tuning. Top-1 (percent) that timm publishes at both sizes, nothing tuned: results/results-imagenet.csv of August
# 2026, of the weights named. The others are published at one size or not at all; their test is 1.25 to 1.5 times as
# large as their training.
RELATIVES = {
    'resnet18d': (224, 288),  # ra2_in1k: 72.30, 73.79
    'resnet34d': (224, 288),  # ra2_in1k: 77.11, 78.44
    'resnet50d': (224, 288),  # ra2_in1k: 80.55, 81.35
    'resnet101d': (256, 320),  # ra2_in1k: 82.25, 83.02
    'resnet152d': (256, 320),  # ra2_in1k: 83.16, 83.68
    'seresnet50': (224, 288),  # ra2_in1k: 80.26, 81.29
    'seresnext50_32x4d': (224, 288),  # racm_in1k: 81.27, 82.19
    'seresnext101_32x8d': (224, 288),  # ah_in1k: 83.62, 84.19
    'ecaresnet50d': (224, 288),  # miil_in1k: 80.63, 81.65
    'resnetrs50': (160, 224),  # tf_in1k: 77.86, 79.93
    'resnetrs101': (192, 288),  # tf_in1k: 80.71, 82.29
    'resnetrs152': (256, 320),  # tf_in1k: 82.90, 83.71
    'senet154': (224, 320),  # legacy_senet154.in1k: 81.32 at 224
    'resnet50_mpncov': (224, 320),  # 78.29 at 224, README of fast-MPN-COV
    'resnet101_mpncov': (224, 320),  # 79.01 at 224, likewise
    'resnetv2_50': (224, 288),  # a1h_in1k: 80.41, 81.41
    'regnetx_032': (224, 288),  # tv2_in1k: 80.92 at 224
    'regnety_016': (224, 288),  # tv2_in1k: 80.67 at 224
    'regnety_032': (224, 288),  # ra_in1k: 81.95, 82.72
    'regnety_160': (224, 288),  # deit_in1k: 83.00, 83.70
}
TABLE |= {
    name: RESNET50 | {'train': train, 'test': test, 'sizes': (train, test)} for name, (train, test) in RELATIVES.items()
}

# Networks without BatchNorm: (training resolution, test resolution). Nobody has published what the classifier alone
# gives them at a larger size. For comparison: ConvNeXt-T and B, untouched, rise from 82.07 and 83.84 at 224 to 82.69
# and 84.47 at 288 (timm, results-imagenet.csv, which tests them there); DeiT III-S, trained as a whole for 20 more
# epochs, from 81.4 at 224 to 83.4 at 384 (README_revenge.md of facebookresearch/deit).
LAYER_NORM = {
    'convnext_tiny': (224, 288),
    'convnext_base': (224, 288),
    'convnextv2_tiny': (224, 288),
    'vit_small_patch16_224': (224, 288),
    'vit_base_patch16_224': (224, 288),
    'deit_small_patch16_224': (224, 288),
    'deit_base_patch16_224': (224, 288),
    'deit3_small_patch16_224': (224, 288),
    'deit3_base_patch16_224': (224, 288),
    'deit3_small_patch16_384': (384, 480),
}
TABLE |= {
    name: RESNET50 | {'train': train, 'test': test, 'sizes': (train, test)}
    for name, (train, test) in LAYER_NORM.items()
}


PAPER = 'paper'  # behind the model: as published


def get_config(variant: str = 'resnet50'):
    """Return the run that adapts one model; `init_from` is to be given."""
    model, _, how = variant.partition(',')
    if model == PAPER:
        model, how = 'resnet50', PAPER
    if model not in TABLE or how not in ('', PAPER):
        raise ValueError(
            f'configs/finetune.py has no variant {variant!r}: use one of :{", :".join(TABLE)}; with ,paper behind it '
            'for the published hyper-parameters.'
        )
    row = TABLE[model]
    c = base.get_config()
    c.model.name = row.get('name', model)
    c.data.source = 'imagenet'
    c.train.epochs = 0.0
    c.train.resolution = row['train']
    c.test.resolution = row['test']
    c.test.resolutions = row['sizes']
    for section in ('model', 'finetune'):
        c[section].update(row.get(section, {}))
    c.finetune.lr = row['lr']
    c.finetune.epochs = row['epochs']
    if how == PAPER:
        c.adaptation = 'finetune'
        c.data.workers = 4
        c.finetune.batch_size = row['batch_size']
    else:
        c.data.threads = 0
        c.data.held_out_fraction = 0.1
        c.test.batch_size = 0
        c.finetune.batch_size = 0
    return c
