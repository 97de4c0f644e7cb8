"""ResNet-50 by procedure A1 of "ResNet strikes back": 600 epochs at 224, LAMB, binary cross entropy.

Command:   python -m fixres_jax.main --config configs/resnet50_a1.py --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Hardware:  4 accelerators; batch 2048, BatchNorm in groups of 512 images, as its authors on 4 GPUs.
Accuracy:  published, nothing adapted: 80.4 at 224 (table 1 of the paper); 80.382 at 224 and, uncropped, 81.240 at 288,
           of the weights resnet50.a1_in1k of timm. Not run here.
Different: images are resized and warped by bicubic interpolation alone, where timm takes bilinear for half of them. An
           epoch of timm's repeats a third of the images three times; here all of them come by in three epochs.
           2 % of the images are held out to choose on (data.held_out_fraction).
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    Wightman, Touvron and Jégou 2021, table 2; the learning rate that the warm-up begins with is timm's.
"""

from configs import base


def get_config():
    """Return the run."""
    c = base.get_config()
    c.model.name = 'resnet50'
    c.model.bn_group_size = 512
    c.model.zero_init_residual = True
    c.model.drop_path = 0.05
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.epochs = 600.0
    c.train.repeats = 3
    c.train.batch_size = 2048
    c.train.optimizer = 'lamb'
    c.train.clip_norm = 1.0
    c.train.lr = 5e-3
    c.train.lr_rule = 'none'
    c.train.schedule = 'cosine'
    c.train.schedule_every = 'epoch'
    c.train.final_lr = 1e-6
    c.train.warmup_epochs = 5.0
    c.train.warmup_lr = 1e-4
    c.train.warmup_prefix = False
    c.train.weight_decay = 0.01
    c.train.weight_decay_on = 'kernels'
    c.train.loss = 'bce'
    c.train.bce_threshold = 0.2
    c.train.label_smoothing = 0.1
    c.train.interpolation = 'bicubic'
    c.train.augment = 'rand-m7-mstd0.5-inc1'
    c.train.jitter = 0.0
    c.train.mixing.mixup = 0.2
    c.train.mixing.cutmix = 1.0
    c.test.interpolation = 'bicubic'
    c.test.resize_ratio = 1 / 0.95
    c.test.resolutions = (192, 224, 256, 288, 320)
    return c
