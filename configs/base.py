"""Every field of every config, with its default. Other configs start from this one and change what they need.

Not a run by itself: data.source is empty.
"""

from ml_collections import ConfigDict, FieldReference


class Config(ConfigDict):
    """A config that can tell the defaults of its fields, so that a run may go on that is older than one of them."""

    def defaults(self) -> dict:
        """Return every field with its default."""
        return get_config().to_dict()


def get_config() -> Config:
    """Return the defaults: the paper's recipe for a ResNet-50 at 224."""
    c = Config()
    c.task = 'recipe'  # recipe (all phases), train, adapt, finetune, evaluate, extract, analyze
    c.adaptation = 'one_pass'  # of the recipe. one_pass: section adapt; finetune: SGD through the network
    c.control = True  # adapt at the training size too: what the report needs to tell resolution from refitting
    c.seed = 0  # of weights, order of images, augmentation and held-out images
    c.init_from = ''  # workdir, converted weights or hf:timm/NAME to begin from; '' for random weights
    c.reset_head = False  # with init_from: start a fresh classifier, for other classes
    c.log_every_steps = 50  # steps averaged into one line of metrics.jsonl
    c.tracker = 'tensorboard'  # where numbers of training go besides metrics.jsonl: tensorboard, wandb, none
    c.validate_every_epochs = 1.0  # of training: passes between two looks at held-out images; 0: none
    c.validation_images = 2000  # of them, at most; they decide nothing
    c.checkpoint_every_steps = 0  # 0: once per pass over the training images
    c.keep_checkpoints = 2  # newest checkpoints kept
    c.compilation_cache = ''  # folder, in the workdir unless absolute or gs://, of compiled programs for later starts
    c.restore_step = 0  # checkpoint to go on from, deleting those after it; 0: the last. For one start only
    c.sharding = 'replicated'  # replicated: the whole state on each device; fsdp: large leaves split over the devices

    c.model = ConfigDict()
    c.model.name = ''  # a name of fixres_jax.models.ARCHITECTURES; '': that of init_from, and without one resnet50
    c.model.num_classes = 0  # 0: as many as init_from has, or else the data
    c.model.width = 0  # channels of the stem; 0: those of init_from, and without one 64, the published network
    c.model.dtype = 'auto'  # of activations: float32, bfloat16; auto: bfloat16 where there is an accelerator
    c.model.bn_group_size = 64  # images that share BatchNorm statistics, the reference's 64 a GPU; 0: the whole batch
    c.model.remat = ''  # activations computed again in the backward pass: '' none, block or stage; saves memory
    c.model.zero_init_residual = False  # last scale of each block starts at zero; the paper's recipe does not
    # The rest is of families that have it; others refuse it.
    c.model.dropout = -1.0  # share of the embedding left out in training; -1: the published network's
    c.model.drop_path = -1.0  # share of images whose last block is left out in training; -1: the published network's
    c.model.padding = (
        ''  # same (TensorFlow), symmetric (torch), cadene (PNASNet's); '': that of init_from, or the usual one
    )

    c.data = ConfigDict()
    c.data.source = ''  # folder of splits of class folders, prepared shards, tfds:NAME, or 'drawings' (embedded)
    c.data.train_split = 'train'  # folder of the training split
    c.data.test_split = 'val'  # folder of the split that the final numbers come from
    c.data.held_out_fraction = 0.02  # of the training images, on average: kept from training to choose on
    c.data.held_out_list = ''  # file of names, one a line, to hold out instead of a fraction
    c.data.few_shot = 0.0  # training images of each class: a number, or a fraction below 1; 0: all
    c.data.few_shot_list = ''  # file of names, one a line, to train on instead
    c.data.classes = ()  # names of the classes to use; (): all
    c.data.mean = ()  # of each channel, 0 to 1; (): that of init_from, or ImageNet's
    c.data.std = ()  # likewise
    c.data.workers = 0  # processes that read images; 0: threads of this process only
    c.data.threads = 4  # threads that read images, in each process; 0: one a core
    c.data.drawings = ConfigDict()
    c.data.drawings.train = 3000  # images of the embedded data set
    c.data.drawings.val = 2000  # likewise

    c.train = ConfigDict()
    c.train.resolution = 224  # pixels of the square crop
    c.train.progressive = ()  # smaller sizes first: ((0.5, 160), (0.75, 192)) is 160 for half of the steps, then 192
    c.train.epochs = 240.0  # passes over the training images; 0: init_from is trained already
    c.train.batch_size = 512  # global
    c.train.accumulate_steps = 1  # parts of the batch computed one after the other; saves memory
    c.train.repeats = 1  # copies of an image in a batch, each augmented by itself
    c.train.lr = 0.02  # base learning rate
    c.train.lr_rule = 'fixres'  # fixres: 8 * lr * batch / 512; batch/256: lr * batch / 256; none: lr
    c.train.schedule = 'step'  # step, cosine, polynomial, one_cycle, constant
    c.train.schedule_every = 'step'  # epoch: the learning rate changes once an epoch only
    c.train.decay_every_epochs = 60.0  # of schedule=step
    c.train.decay_rate = 0.1  # of schedule=step: what the learning rate is multiplied by
    c.train.power = 1.0  # of schedule=polynomial
    c.train.final_lr = 0.0  # that cosine, polynomial and one_cycle end with; no lr_rule scales it
    c.train.warmup_epochs = 0.0  # of linear rise
    c.train.warmup_lr = 0.0  # that it begins with; no lr_rule scales it
    c.train.warmup_prefix = True  # the schedule begins after the warm-up; False: at step 0, hidden by it, as in timm
    c.train.optimizer = 'sgd'  # sgd (torch's), sgd_tf (Keras's), adamw, lamb, lars, rmsprop_tf
    c.train.momentum = 0.9  # first beta of adamw and lamb
    c.train.nesterov = False  # of sgd, sgd_tf and lars
    c.train.beta2 = 0.0  # of adamw and lamb; of rmsprop_tf its decay; 0: 0.999 and 0.9
    c.train.epsilon = 0.0  # 0: adamw 1e-8, lamb 1e-6, lars 1e-8, rmsprop_tf 1e-10
    c.train.weight_decay = 1e-4
    c.train.weight_decay_on = 'all'  # all, not_norms (all but norms, as torchvision), kernels (as timm)
    c.train.layer_decay = 1.0  # learning rate of a block is this share of that of the next; below 1 for fine-tuning
    c.train.clip_norm = 0.0  # the whole gradient is clipped to this norm; 0: not
    c.train.label_smoothing = 0.0  # share of the target spread over all classes
    c.train.trainable = '.*'  # regex of the parameters that train
    c.train.batch_norm = '.*'  # regex of the BatchNorm layers on batch statistics
    c.train.crop = 'torchvision'  # torchvision: RandomResizedCrop; tensorflow: its boxes; resize: Resize, RandomCrop
    c.train.interpolation = 'bilinear'  # or bicubic
    c.train.scale = (0.08, 1.0)  # of RandomResizedCrop: range of the crop's area over the image's
    c.train.ratio = (3 / 4, 4 / 3)  # of RandomResizedCrop: range of width over height
    c.train.flip = True  # horizontally, half of the time
    c.train.augment = ''  # trivial, randaugment-m9-n2 (torchvision's); rand-m7-mstd0.5-inc1 (timm's); augmix, 3augment
    c.train.jitter = 0.3  # of brightness, contrast and saturation
    c.train.loss = 'cross_entropy'  # or bce: each class by itself is there or not
    c.train.bce_threshold = -1.0  # of bce: a target above it becomes 1, any other 0; below 0: they stay as they are
    c.train.ema = ConfigDict()  # moving average of the parameters; the sweep and what follows run on it
    c.train.ema.decay = 0.0  # share of the old average; 0: no average
    c.train.ema.warmup = False  # the decay rises from 0, as in timm
    c.train.ema.start_epochs = 0.0  # until then the average is a copy
    c.train.ema.every_steps = 1  # steps between two changes
    c.train.mixing = ConfigDict()  # on the devices; the images of a BatchNorm group are mixed by one draw
    c.train.mixing.mixup = 0.0  # alpha of its beta distribution; 0: no mixup
    c.train.mixing.cutmix = 0.0  # likewise
    c.train.mixing.probability = 1.0  # of a group being mixed
    c.train.mixing.switch = 0.5  # probability of CutMix where both have an alpha
    c.train.mixing.erasing = 0.0  # probability of an image losing a box
    c.train.mixing.erasing_fill = 'zero'  # zero: the mean colour; noise

    c.test = ConfigDict()
    # Test resolutions: pixels of a square, or height and width: (352, 640) or '352x640'.
    c.test.resolution = FieldReference(0, field_type=object)  # to adapt and report at; 0: chosen on the held-out images
    c.test.resolutions = ()  # of the sweep and the curve; (): 0.75 to 2 times the training resolution
    c.test.resize = ''  # short: the shorter side; height: as FixRes weights were scored; '': as init_from, or short
    c.test.interpolation = ''  # bilinear, bicubic; '': that of init_from, or bilinear
    c.test.crop = True  # False: the whole image, padded to a square
    c.test.resize_ratio = 0.0  # shorter side over crop; 0: that of init_from, or 256/224
    c.test.batch_size = 256  # global; 0: 256 a device, or 32 on a CPU

    c.adapt = ConfigDict()
    # Both solvers train the classifier alone: sgd refuses any other finetune.trainable, lbfgs ignores it.
    # none keeps the classifier: new statistics alone.
    c.adapt.solver = 'auto'  # lbfgs, sgd (values of section finetune), none; auto: lbfgs if the held-out are unseen
    c.adapt.weight_decays = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of lbfgs, chosen on the held-out images
    c.adapt.max_iterations = 100  # of lbfgs
    c.adapt.statistics_images = 10000  # training images for BatchNorm's statistics, at most a sixteenth of all
    c.adapt.prior_images = 0  # that the old statistics count as, to blend the new ones with them; 0: replace them
    c.adapt.flip = False  # embed the mirror images too
    c.adapt.copies = 0  # augmented copies of each image to embed too: flip, jitter 0.05, horizontally shifted crop
    c.adapt.cache_dtype = 'float32'  # of embeddings: float32, bfloat16
    c.adapt.cache_gigabytes = 8.0  # of each device's memory for embeddings; more goes to disk
    c.adapt.sweep_images = 50000  # training images for the adaptation at every resolution of the sweep, at most

    c.extract = ConfigDict()
    c.extract.split = 'test'  # test, train (what was trained on) or held_out
    c.extract.flip = False  # average the softmax and the embedding with those of the mirror image

    c.published = ConfigDict()  # figures of others on the same images, which the report shows beside those of the run
    c.published.source = ''  # where they are published; '': there are none
    c.published.network = ''  # theirs
    c.published.conditions = ''  # theirs: sizes, crops, training images
    c.published.baseline = 0.0  # top-1 in percent without the method; 0: not published
    c.published.adapted = 0.0  # with it; 0: not published

    # Of task=analyze: regions, activations, ablation, cost, robustness, grid; a recipe makes it for its report too.
    c.study = ''
    c.analyze = ConfigDict()
    c.analyze.images = 2000  # test images for the activations' distributions and of study=robustness, at most
    c.analyze.epochs = 1.0  # of the ablation's fine-tuning of BatchNorm's scale and bias; 0: without
    c.analyze.runs = ()  # workdirs of the recipe, for study=grid
    c.analyze.corruptions = ()  # of study=robustness: kinds such as 'fog'; (): all
    c.analyze.strengths = (1, 2, 3, 4, 5)  # of those
    c.analyze.variants = ()  # of study=robustness: other test images, such as 'sketch=tfds:imagenet_sketch'
    c.analyze.prior_images = 256  # of study=robustness: adapt.prior_images of the network with blended statistics

    c.finetune = ConfigDict()
    c.finetune.augmentation = 'test'  # test: the test transform; v2: flip, jitter 0.05, horizontally shifted crop
    c.finetune.epochs = 56.0  # passes over the training images
    c.finetune.batch_size = 512  # global; 0: an eighth of the images, a power of two, 512 at most
    c.finetune.accumulate_steps = 1
    c.finetune.repeats = 1
    c.finetune.lr = 1e-3  # base learning rate
    c.finetune.lr_rule = 'fixres'
    c.finetune.schedule = 'step'
    c.finetune.schedule_every = 'step'
    c.finetune.decay_every_epochs = 30.0
    c.finetune.decay_rate = 0.1
    c.finetune.power = 1.0
    c.finetune.final_lr = 0.0
    c.finetune.warmup_epochs = 0.0
    c.finetune.warmup_lr = 0.0
    c.finetune.warmup_prefix = True
    c.finetune.optimizer = 'sgd'
    c.finetune.momentum = 0.9
    c.finetune.nesterov = False
    c.finetune.beta2 = 0.0
    c.finetune.epsilon = 0.0
    c.finetune.weight_decay = 1e-4
    c.finetune.weight_decay_on = 'all'
    c.finetune.layer_decay = 1.0
    c.finetune.clip_norm = 0.0
    c.finetune.label_smoothing = 0.0
    c.finetune.follows = 'code'  # what '' means below where the reference's code and paper differ: code or paper
    c.finetune.trainable = ''  # regex; '': the model's own, the classifier
    c.finetune.batch_norm = ''  # regex; '': the model's own, the last BatchNorm
    return c
