"""EfficientNet-B0 as timm trains it: RMSprop of TensorFlow, RandAugment, an average of the parameters.

Command:   python -m fixres_jax.main --config configs/efficientnet_b0.py --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Hardware:  2 accelerators; batch 768, BatchNorm in groups of 384 images, as timm on 2 GPUs.
Accuracy:  published, nothing adapted: 77.698 at 224 (efficientnet_b0.ra_in1k). FixRes has 79.3 at 320 of the weights
           of AdvProp, which are others. Not run here.
Different: images are resized by bicubic interpolation alone, where timm takes bilinear for half of them; the average
           gets BatchNorm statistics of its own, where timm averages those of the steps.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    timm, "Training Scripts": EfficientNet-B0 with RandAugment.
"""

from configs import base


def get_config():
    """Return the run."""
    c = base.get_config()
    c.model.name = 'efficientnet_b0'
    c.model.bn_group_size = 384
    c.model.dropout = 0.2
    c.model.drop_path = 0.2
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.epochs = 450.0
    c.train.batch_size = 768
    c.train.optimizer = 'rmsprop_tf'
    c.train.epsilon = 1e-3
    c.train.lr = 0.048
    c.train.lr_rule = 'none'
    c.train.schedule_every = 'epoch'
    c.train.decay_every_epochs = 2.4
    c.train.decay_rate = 0.97
    c.train.warmup_epochs = 3.0
    c.train.warmup_lr = 1e-6
    c.train.warmup_prefix = False
    c.train.weight_decay = 1e-5
    c.train.weight_decay_on = 'kernels'
    c.train.label_smoothing = 0.1
    c.train.interpolation = 'bicubic'
    c.train.augment = 'rand-m9-mstd0.5'
    c.train.jitter = 0.0
    c.train.mixing.erasing = 0.2
    c.train.mixing.erasing_fill = 'noise'
    c.train.ema.decay = 0.9999
    c.test.interpolation = 'bicubic'
    c.test.resolutions = (192, 224, 256, 288, 320)
    c.finetune.batch_size = 768
    return c
