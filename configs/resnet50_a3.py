"""ResNet-50 by procedure A3 of "ResNet strikes back": 100 epochs at 160, LAMB, binary cross entropy.

Command:   python -m fixres_jax.main --config configs/resnet50_a3.py --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Hardware:  4 accelerators; batch 2048, BatchNorm in groups of 512 images, as its authors on 4 GPUs.
Accuracy:  published, nothing adapted: 75.994 at 160 and 78.052 at 224, of the weights resnet50.a3_in1k of timm. Not
           run here.
Different: images are resized and warped by bicubic interpolation alone, where timm takes bilinear for half of them.
           2 % of the images are held out to choose on (data.held_out_fraction).
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    Wightman, Touvron and Jégou 2021, table 2; the learning rate that the warm-up begins with is timm's.
"""

from configs import resnet50_a1


def get_config():
    """Return the run: procedure A1 made shorter and smaller."""
    c = resnet50_a1.get_config()
    c.model.drop_path = 0.0
    c.train.resolution = 160
    c.train.epochs = 100.0
    c.train.repeats = 1
    c.train.lr = 8e-3
    c.train.weight_decay = 0.02
    c.train.label_smoothing = 0.0
    c.train.augment = 'rand-m6-mstd0.5-inc1'
    c.train.mixing.mixup = 0.1
    c.test.resolutions = (128, 160, 176, 192, 224, 256)
    return c
