"""ResNet-50 trained with CutMix, which the paper adapts to its best ResNet-50 without extra data.

Command:   python -m fixres_jax.main --config configs/resnet50_cutmix.py --workdir DIR --config.data.source=IMAGENET
           IMAGENET holds train/ and val/, folders of class folders; or tfds:imagenet2012.
Hardware:  4 accelerators; batch 256, BatchNorm in groups of 64 images.
Accuracy:  published: 78.6 at 224 (CutMix, table 3); adapted 79.7 at 320, and 79.8 in the paper's second version. Not
           run here.
Different: the authors of CutMix also add noise along the principal colours of ImageNet (Lighting). They mix a batch
           by one draw and in random order; here each BatchNorm group has its draw.
Time:      not measured here. `python -m fixres_jax.dryrun` estimates it for a topology.
Source:    github.com/clovaai/CutMix-PyTorch, train.py and its README; Touvron et al. 2019 for 320.
"""

from configs import base


def get_config():
    """Return the run."""
    c = base.get_config()
    c.model.name = 'resnet50'
    c.data.source = 'imagenet'
    c.data.workers = 4
    c.data.threads = 4
    c.train.epochs = 300.0
    c.train.batch_size = 256
    c.train.lr = 0.1
    c.train.lr_rule = 'batch/256'
    c.train.schedule_every = 'epoch'
    c.train.decay_every_epochs = 75.0
    c.train.nesterov = True
    c.train.jitter = 0.4
    c.train.mixing.cutmix = 1.0
    c.test.resolutions = (224, 256, 288, 320, 384)
    c.finetune.epochs = 11.0
    return c
