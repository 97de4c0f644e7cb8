"""ResNet-50 as torchvision trains its second weights: small crops of 176, TrivialAugment, mixtures, an average.

Command:   python -m fixres_jax.main --config configs/resnet50_v2.py --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Hardware:  8 accelerators; batch 1024, BatchNorm in groups of 128 images, as torchvision on 8 GPUs.
Accuracy:  published, nothing adapted: 80.858 at 224 (IMAGENET1K_V2, 232 before the crop). Its authors count 0.160 of
           that for training at 176. Not run here.
Different: torchvision takes one of mixup and CutMix for the batch of a GPU and rolls it by one image; here they are
           drawn for each BatchNorm group, whose first image is mixed with the last. Erased boxes reach aspects of
           10:3, theirs 3.3. Their average has averaged statistics of BatchNorm, this one exact ones of its own. They
           compute in float32, which here is model.dtype=float32. An epoch of theirs repeats a quarter of the images
           four times; here all of them come by in four epochs. 2 % of the images are held out to choose on.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    github.com/pytorch/vision, references/classification/README.md; pytorch.org/blog, "How to train
           state-of-the-art models using TorchVision's latest primitives".
"""

from configs import base


def get_config():
    """Return the run."""
    c = base.get_config()
    c.model.name = 'resnet50'
    c.model.bn_group_size = 128
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.resolution = 176
    c.train.epochs = 600.0  # of samples seen, as torchvision counts them with its repeats
    c.train.repeats = 4
    c.train.batch_size = 1024
    c.train.lr = 0.5
    c.train.lr_rule = 'none'
    c.train.schedule = 'cosine'
    c.train.schedule_every = 'epoch'
    c.train.warmup_epochs = 5.0
    c.train.warmup_lr = 0.005
    c.train.weight_decay = 2e-5
    c.train.weight_decay_on = 'not_norms'
    c.train.label_smoothing = 0.1
    c.train.augment = 'trivial'
    c.train.jitter = 0.0
    c.train.mixing.mixup = 0.2
    c.train.mixing.cutmix = 1.0
    c.train.mixing.erasing = 0.1
    # Its decay of 0.99998, for a batch of one image and an epoch, is this at 1024 images, 32 steps and 600 epochs.
    c.train.ema.decay = 1 - (1 - 0.99998) * 1024 * 32 / 600
    c.train.ema.every_steps = 32
    c.train.ema.start_epochs = 5.0
    c.test.resize_ratio = 232 / 224
    c.test.resolutions = (160, 176, 192, 208, 224, 256, 288)
    return c
