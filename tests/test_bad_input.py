"""Wrong input of every kind ends in one line that says what is wrong, and in the right exit code.

A row is a command line, its exit code, and what its line says. All rows run in this process, without a new interpreter.
In the command lines, names in braces are the files and folders of `places`.
"""

import json
import logging
import re
import shlex
import shutil
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl import logging as absl_logging
from etils import epath
from PIL import Image
from safetensors.numpy import save_file

from conftest import pattern
from fixres_jax import advise, convert, dryrun, extract, main, models, prepare
from fixres_jax.core import command
from fixres_jax.runs import command_line
from fixres_jax.weights import checkpoint

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # of ml_collections

# Of `main` with the quickstart's config on a small folder of images, unless the row says otherwise.
VALUES = [
    # Names that are misspelt.
    ('--config.train.epoch=3', r"no field 'train.epoch'. Did you mean 'train.epochs'"),
    ('--config.trian.epochs=3', r"no field 'trian.epochs'. Did you mean 'train.epochs'"),
    ('--config.batch_size=32', r"no field 'batch_size'. Did you mean '.*batch_size'"),
    ('--config.train=3', 'train is a section of the config: give a field of it, such as accumulate_steps'),
    ('--config.task=recipee', r"task='recipee': expected one of .* Did you mean 'recipe'"),
    ('--config.task=test', r"task='test': expected one of recipe, train"),
    ('--config.adaptation=onepass', r"adaptation='onepass': .* Did you mean 'one_pass'"),
    ('--config.sharding=fdsp', r"sharding='fdsp': .* Did you mean 'fsdp'"),
    ('--config.study=region', r"study='region': .* Did you mean 'regions'"),
    ('--config.model.name=resnet5O', r"model.name='resnet5O': .* Did you mean 'resnet50'"),
    ('--config.model.name=ResNet18', r"model.name='ResNet18': .* Did you mean 'resnet18'"),
    ('--config.model.name=efficientnet_b9', r"model.name='efficientnet_b9': expected one of"),
    ('--config.model.dtype=bf16', r"model.dtype='bf16': expected one of auto, float32, bfloat16"),
    ('--config.model.dtype=float16', r"model.dtype='float16': .* Did you mean 'bfloat16'"),
    ('--config.model.remat=blocks', r"model.remat='blocks': .* Did you mean 'block'"),
    ('--config.train.schedule=cosin', r"train.schedule='cosin': .* Did you mean 'cosine'"),
    ('--config.train.lr_rule=linear', r"train.lr_rule='linear': expected one of fixres, batch/256, none"),
    ('--config.train.crop=pytorch', r"train.crop='pytorch': expected one of torchvision, tensorflow, resize"),
    ('--config.train.interpolation=bicubik', r"train.interpolation='bicubik': .* Did you mean 'bicubic'"),
    ('--config.finetune.schedule=steps', r"finetune.schedule='steps': .* Did you mean 'step'"),
    ('--config.finetune.augmentation=v1', r"finetune.augmentation='v1': expected one of test, v2"),
    ('--config.test.resize=width', r"test.resize='width': expected one of '', short, height"),
    ('--config.test.interpolation=nearest', r"test.interpolation='nearest': expected one of"),
    ('--config.adapt.solver=lbgfs', r"adapt.solver='lbgfs': .* Did you mean 'lbfgs'"),
    ('--config.adapt.cache_dtype=float16', r"adapt.cache_dtype='float16': .* Did you mean"),
    ('--config.extract.split=val', r"extract.split='val': expected one of test, train, held_out"),
    # Values of another type.
    ('--config.train.epochs=many', r'train.epochs=many: expected a number, such as 24.0'),
    ('--config.train.batch_size=64.5', r'train.batch_size=64.5: expected a whole number, such as 64'),
    ('--config.train.batch_size=1e3', r'train.batch_size=1e3: expected a whole number'),
    ('--config.train.flip=maybe', r'train.flip=maybe: expected True or False'),
    ('--config.model.bn_group_size=None', r'model.bn_group_size=None: expected a whole number, such as 64'),
    ("--config.test.resolutions=('a','b')", r"test.resolutions=\('a', 'b'\): expected .* such as \(224, 256, 288\)"),
    ('--config.test.resolutions=(96.5,128)', r'test.resolutions=\(96.5, 128\): expected .* whole number'),
    ('--config.data.classes=(1,2)', r'data.classes=\(1, 2\): expected a tuple, each element text'),
    ('--config.adapt.weight_decays=(None,)', r'adapt.weight_decays=\(None,\): expected a tuple'),
    ('--config.seed=one', r'seed=one: expected a whole number, such as 0'),
    # Values out of range.
    ('--config.seed=-1', r'seed=-1: expected 0 to 2,147,483,647, such as 0'),
    ('--config.seed=99999999999999999999', r'seed=99999999999999999999: expected 0 to'),
    ('--config.log_every_steps=0', r'log_every_steps=0: expected 1 or more, such as 50'),
    ('--config.checkpoint_every_steps=-5', r'checkpoint_every_steps=-5: expected 0 or more'),
    ('--config.keep_checkpoints=0', r'keep_checkpoints=0: expected 1 or more, such as 2'),
    ('--config.restore_step=-1', r'restore_step=-1: expected 0 or more'),
    ('--config.restore_step=999', r'restore_step=999: .* has no such checkpoint, but none'),
    ('--config.model.num_classes=-1', r'model.num_classes=-1: expected 0 or more'),
    ('--config.model.width=-8', r'model.width=-8: expected 0 or more, such as 64'),
    ('--config.model.bn_group_size=-1', r'model.bn_group_size=-1: expected 0 or more, such as 64'),
    ('--config.data.held_out_fraction=1', r'data.held_out_fraction=1.0: expected 0 or more and below 1, such as 0.02'),
    ('--config.data.held_out_fraction=-0.1', r'data.held_out_fraction=-0.1: expected'),
    ('--config.data.few_shot=-3', r'data.few_shot=-3.0: expected 0, a fraction below 1 or a whole number'),
    ('--config.data.few_shot=2.5', r'data.few_shot=2.5: expected'),
    ('--config.data.mean=(0.5,0.5)', r'data.mean=\(0.5, 0.5\): expected \(\) or three numbers from 0 to 1'),
    ('--config.data.mean=(124,116,104)', r'data.mean=\(124.0, 116.0, 104.0\): expected .* from 0 to 1'),
    ('--config.data.std=(0,0,0)', r'data.std=\(0.0, 0.0, 0.0\): expected \(\) or three numbers above 0'),
    ('--config.data.workers=-1', r'data.workers=-1: expected 0 to 1,024, such as 0'),
    ('--config.data.threads=-1', r'data.threads=-1: expected 0 to 1,024, such as 4'),
    ('--config.data.drawings.train=5', r'data.drawings.train=5: expected 9 or more, such as 3000'),
    ('--config.train.resolution=16', r'train.resolution=16 is too small for resnet18: expected 32 or more, such as 64'),
    ('--config.train.epochs=-1', r'train.epochs=-1.0: expected 0 or more, such as 30'),
    ('--config.train.epochs=inf', r'train.epochs=inf: expected a finite number'),
    ('--config.train.batch_size=0', r'train.batch_size=0: expected 1 to 1,048,576, such as 64'),
    ('--config.train.batch_size=-64', r'train.batch_size=-64: expected 1 to'),
    ('--config.train.accumulate_steps=0', r'train.accumulate_steps=0: expected 1 or more'),
    ('--config.train.repeats=0', r'train.repeats=0: expected 1 or more'),
    ('--config.train.lr=-0.1', r'train.lr=-0.1: expected 0 or more, such as 0.1'),
    ('--config.train.lr=nan', r'train.lr=nan: expected a finite number, such as 0.1'),
    ('--config.train.decay_every_epochs=0', r'train.decay_every_epochs=0.0: expected a number above 0, such as 30'),
    ('--config.train.warmup_epochs=-1', r'train.warmup_epochs=-1.0: expected 0 or more'),
    ('--config.train.momentum=2', r'train.momentum=2.0: expected 0 or more and below 1, such as 0.9'),
    ('--config.train.weight_decay=-1e-4', r'train.weight_decay=-0.0001: expected 0 or more, such as 0.0001'),
    ('--config.train.label_smoothing=1.5', r'train.label_smoothing=1.5: expected 0 or more and below 1, such as 0.1'),
    ('--config.train.scale=(1.0,0.08)', r'train.scale=\(1.0, 0.08\): expected \(low, high\) above 0, at most 1'),
    ('--config.train.scale=(0.08,2)', r'train.scale=\(0.08, 2.0\): expected'),
    ('--config.train.ratio=(0.75,)', r'train.ratio=\(0.75,\): expected \(low, high\)'),
    ('--config.train.progressive=((0.5,16),)', r'train.progressive=16 is too small for resnet18: expected 32 or more'),
    ('--config.train.progressive=((0.5,64),(0.5,80))', r'train.progressive=.*: expected .* shares rising .*, such as'),
    ('--config.train.augment=trival', r"train.augment: The augmentation is 'trival'; .* Did you mean 'trivial'"),
    ('--config.train.jitter=-0.3', r'train.jitter=-0.3: expected 0 or more'),
    ('--config.train.optimizer=adam', r"train.optimizer='adam': expected one of sgd, .* Did you mean 'adamw'"),
    ('--config.train.weight_decay_on=kernel', r"weight_decay_on='kernel': .* Did you mean 'kernels'"),
    ('--config.train.layer_decay=1.5', r'train.layer_decay=1.5: expected above 0 and at most 1, such as 0.75'),
    ('--config.train.schedule_every=batch', r"train.schedule_every='batch': expected one of step, epoch"),
    ('--config.train.decay_rate=0', r'train.decay_rate=0.0: expected above 0 and at most 1, such as 0.1'),
    ('--config.train.loss=bse', r"train.loss='bse': expected one of cross_entropy, bce"),
    ('--config.train.mixing.cutmix=-1', r'train.mixing.cutmix=-1.0: expected 0 or more, such as 1.0'),
    ('--config.train.mixing.erasing=2', r'train.mixing.erasing=2.0: expected 0 to 1, such as 0.25'),
    ('--config.train.mixing.erasing_fill=nois', r"erasing_fill='nois': expected one of .* Did you mean 'noise'"),
    ('--config.train.ema.decay=1', r'train.ema.decay=1.0: expected 0 or more and below 1, such as 0.9999'),
    ('--config.train.ema.every_steps=0', r'train.ema.every_steps=0: expected 1 or more'),
    ('--config.test.resolution=wide', r"test.resolution='wide': expected a whole number of pixels, or"),
    ('--config.test.resolution=(64,8)', r'test.resolution=64x8 is too small for resnet18: expected 32 or more'),
    ('--config.test.resolution=8', r'test.resolution=8 is too small for resnet18: expected 32 or more, such as 64'),
    ('--config.test.resolutions=(8,64)', r'test.resolutions=8 is too small for .*: expected 32 or more, such as 64'),
    ('--config.test.resize_ratio=-1', r'test.resize_ratio=-1.0: expected 0, or 1 or more, such as 1.14'),
    ('--config.test.resize_ratio=0.875', r'test.resize_ratio=0.875: expected 0, or 1 or more'),
    ('--config.test.batch_size=-1', r'test.batch_size=-1: expected 0 to'),
    ('--config.adapt.weight_decays=()', r'adapt.weight_decays=\(\): expected at least one value, none below 0'),
    ('--config.adapt.weight_decays=(-1.0,)', r'adapt.weight_decays=\(-1.0,\): expected at least one value'),
    ('--config.adapt.max_iterations=0', r'adapt.max_iterations=0: expected 1 or more'),
    ('--config.adapt.copies=-1', r'adapt.copies=-1: expected 0 or more'),
    ('--config.adapt.cache_gigabytes=-8', r'adapt.cache_gigabytes=-8.0: expected 0 or more'),
    ('--config.analyze.epochs=-1', r'analyze.epochs=-1.0: expected 0 or more'),
    ('--config.adapt.prior_images=-1', r'adapt.prior_images=-1: expected 0 or more, such as 256'),
    ("--config.analyze.corruptions=('frost',)", r"analyze.corruptions=\('frost',\): expected names of gaussian_noise"),
    ('--config.analyze.strengths=(0,)', r'analyze.strengths=\(0,\): expected at least one of 1 to 5'),
    ('--config.analyze.prior_images=0', r'analyze.prior_images=0: expected 1 or more'),
    ('--config.finetune.lr=-1', r'finetune.lr=-1.0: expected 0 or more'),
    ('--config.finetune.label_smoothing=1', r'finetune.label_smoothing=1.0: expected'),
    # Values that do not fit together, or not what the task needs.
    ('--config.train.batch_size=48', r'48 is not a multiple of .*=64: set model.bn_group_size=48, or 0'),
    ('--config.train.accumulate_steps=2', r'in 2 parts of 32 .* set model.bn_group_size=32, .* train.batch_size=128'),
    ('--config.train.accumulate_steps=3', r'cannot be split into train.accumulate_steps=3 parts: .* such as 66'),
    ('--config.train.batch_size=4 --config.model.bn_group_size=4', r'batch_size=4 cannot be split over 8 devices'),
    ('--config.model.bn_group_size=1 --config.train.resolution=32', r'model.bn_group_size=1 makes groups of one image'),
    ('--config.test.resolutions=(32,40)', r'test.resolutions=\(32, 40\) has none of at least train.resolution=64'),
    ('--config.data.held_out_fraction=0', r'Nothing to choose .* above 0, such as 0.02, or give test.resolution'),
    ('--config.train.epochs=0', r'train.epochs=0 needs a trained network'),
    ('--config.reset_head=True', r'reset_head=True gives a fresh classifier to a given network'),
    ('--config.task=evaluate', r'task=evaluate needs a network: set --config.init_from'),
    ('--config.task=extract', r'task=extract needs a network'),
    ('--config.task=adapt --config.init_from={network}', r'task=adapt needs the resolution to adapt to: set'),
    ('--config.task=finetune --config.init_from={network}', r'task=finetune needs the resolution'),
    ('--config.task=evaluate --config.init_from={network} --config.model.width=8 --config.train.resolution=16',
     r'train.resolution=16 is too small for resnet18: expected 32 or more'),
    ('--config.task=analyze',
     r'study is empty: set --config.study to one of ablation, activations, regions, cost, robustness, grid'),
    ('--config.task=analyze --config.study=ablation', r'task=analyze needs a network'),
    ('--config.task=analyze --config.study=grid', r'study=grid needs finished runs: set --config.analyze.runs'),
    ('--config.train.trainable=', r"train.trainable='': expected a regular expression, not empty, such as '.\*'"),
    ('--config.train.trainable=(fc', r"train.trainable='\(fc': expected a regular expression"),
    ('--config.train.trainable=head/.*', r'train.trainable: .* matches none .*'),
    ('--config.finetune.batch_norm=layer4/9/bn1', r'finetune.batch_norm: .*layer4/9/bn1.* Near names'),
    ('--config.finetune.trainable=layer5/.*', r'finetune.trainable: .* Near names'),
    ('--config.model.num_classes=2', r'model.num_classes=2 is fewer than the 4 classes'),
    # Networks to begin from.
    ('--config.init_from=/nowhere/weights', r'/nowhere/weights holds no network: .* there is no such folder'),
    ('--config.init_from={tiny}', r'holds no network: expected a workdir of this program'),
    ('--config.task=evaluate --config.init_from={network} --config.model.name=resnet34', r'is a resnet18 of'),
    # The images.
    ('--config.data.source=', r'data.source is empty: set --config.data.source to a folder'),
    ('--config.data.source=/nowhere/at/all', r"There is no folder '/nowhere/at/all'"),
    ('--config.data.source={file}', r'There is no folder'),
    ('--config.data.source={tiny}/train', r"has no split 'val'; it has ant, bee, cat, dog"),
    ('--config.data.source={flat}', r"has no split 'val'; it has none"),
    ('--config.data.source={empty}', r'The class folder .* holds no images. Remove it'),
    ('--config.data.source={case}', r"classes 'Ant' and 'ant', which differ in case only"),
    ('--config.data.source={classes}', r'The splits .* different classes; 2 are in one only: dog, eel'),
    ('--config.data.source={broken_manifest}', r'manifest.json is missing or damaged'),
    ('--config.data.source={no_manifest}', r'holds shards but no manifest.json'),
    ('--config.data.source=tfds:imagenette_typo', r'tfds|tensorflow'),
    ('--config.data.train_split=trane', r"has no split 'trane'; .* Did you mean 'train'"),
    ('--config.data.test_split=holdout', r"has no split 'holdout'; it has train, val"),
    ("--config.data.classes=('ant','be')", r"Class 'be' .* Did you mean 'bee'"),
    ("--config.data.classes=('ant','ant')", r"Class 'ant' is given twice"),
    ('--config.data.held_out_list=/nowhere/list.txt', r"There is no file '/nowhere/list.txt'"),
    ('--config.data.held_out_list={list}', r'{list}: nothing.jpg is 0 times in the data set'),
    ('--config.data.few_shot=500', r'500 images a class were asked for; .* has \d+'),
    ('--config.data.few_shot_list={list}', r'nothing.jpg is 0 times in the data set'),
]  # fmt: skip

COMMANDS = [
    # Flags and config files.
    ('main', '', 2, r'--config is missing. Example: --config configs/quickstart.py --workdir'),
    ('main', '--config=configs/quickstart.py', 2, r'--workdir is missing'),
    ('main', '--workdir={new}', 2, r'--config is missing'),
    ('main', '--config=configs/nothing.py --workdir={new}', 2, r"There is no config file 'configs/nothing.py'"),
    ('main', '--config=configs/quickstar.py --workdir={new}', 2, r"Did you mean 'configs/quickstart.py'"),
    ('main', '--config=configs --workdir={new}', 2, r"There is no config file 'configs'"),
    ('main', '--config= --workdir={new}', 2, r"There is no config file ''"),
    ('main', '--config=configs/imagenette.py:big --workdir={new}', 2, r"no variant 'big': use :small, :plain or"),
    ('main', '--config=configs/resnet50.py:512 --workdir={new}', 2, r"no variant '512'"),
    ('main', '--config=configs/quickstart.py:big --workdir={new}', 2, r'takes no variant: leave out :big'),
    ('main', '--config={no_get_config} --workdir={new}', 2, r'no_get_config.py has no get_config: a config file has'),
    ('main', '--config={dict} --workdir={new}', 2, r'get_config of .*dict.py returned a dict: a config file has'),
    ('main', '--config={none} --workdir={new}', 2, r'get_config of .*none.py returned a NoneType'),
    ('main', '--config={bad_import} --workdir={new}', 2, r"bad_import.py cannot be loaded: .* in line 1: No"),
    ('main', '--config={syntax} --workdir={new}', 2, r'syntax.py cannot be loaded: SyntaxError in line 2'),
    ('main', '--config={raises} --workdir={new}', 2, r'raises.py went wrong: KeyError in line 2'),
    ('main', '--config={wants_variant} --workdir={new}', 2, r'wants_variant.py takes a variant: give it after a colon'),
    ('main', '--config={other} --workdir={new}', 2, r'The config has a field colour, which is unknown|has no field'),
    ('main', '--config={extra} --workdir={new}', 2, r"field train.momentun, which is unknown. Did you mean 'momentum'"),
    ('main', '--config=configs/quickstart.py --workdirr={new}', 2, r"'workdirr'. Did you mean: workdir"),
    ('main', '--config=configs/quickstart.py --workdir={new} resume', 2, r"'resume' was not expected: options begin"),
    ('main', '--config=configs/quickstart.py --workdir={new} --num_processes=two', 2, r'--num_processes=two'),
    ('main', '--config=configs/quickstart.py --workdir={new} --num_processes=2', 2, r'go with --distributed'),
    ('main', '--config.seed=1 --config=configs/quickstart.py --workdir={new}', 2, r'Found --config.seed=1 in argv'),
    # Workdirs.
    ('main', '--config=configs/quickstart.py --workdir={file}', 2, r'{file} cannot be written: .* --workdir'),
    ('main', '--config=configs/quickstart.py --workdir=/proc/run', 2, r'/proc/run cannot be written'),
    ('main', '--config={small} --workdir={used} --config.data.source={tiny}', 2, r'train.lr was 9'),
    # The dry run.
    ('dryrun', '--devices=2', 2, r'--config is missing'),
    ('dryrun', '--config=configs/quickstart.py', 2, r'Give either --topology .* or --devices'),
    ('dryrun', '--config=configs/quickstart.py --devices=2 --topology=v5e:2x2', 2, r'Give either --topology'),
    ('dryrun', '--config=configs/quickstart.py --devices=two', 2, r'--devices=two'),
    ('dryrun', '--config=configs/quickstart.py --topology=h100:9', 2, r'--topology=h100:9 does not name .*h100:8'),
    ('dryrun', '--config=configs/quickstart.py --devices=2 --steps=train,evalute', 2, r"Did you mean 'evaluate'"),
    ('dryrun', '--config=configs/quickstart.py --devices=2 --train_images=0', 2, r'--train_images=0: expected 1'),
    ('dryrun', '--config=configs/quickstart.py --devices=2 --config.test.resolution=8', 2, r'test.resolution=8 is too'),
    ('dryrun', '--config=configs/quickstart.py --devices=2 --config.train.momentum=1', 2, r'momentum=1.0: expected'),
    ('dryrun', '--config=configs/quickstart.py --devices=2 --config.model.nme=x', 2, r"Did you mean 'model.name'"),
    # Advice.
    ('advise', '--train-resolution=16', 2, r'train_resolution=16 is too small'),
    ('advise', '--train-resolution=big', 2, r"argument --train-resolution: invalid int value: 'big'.* --help"),
    ('advise', '--train-resolution=224 --foo', 2, r'unrecognized arguments: --foo. See .*advise --help'),
    ('advise', '--crop=pytorch', 2, r"The crop is 'pytorch'; expected"),
    ('advise', '--scale 1 0.1', 2, r'The scale is 1.0 to 0.1; expected'),
    ('advise', '--resize=width', 2, r"The resize is 'width'; expected"),
    ('advise', '--resize-ratio=0.875', 2, r'The resize ratio is 0.875; expected 1 or more'),
    ('advise', '--model=resnet5O', 2, r"There is no model 'resnet5O'. Did you mean 'resnet50'"),
    ('advise', '--width=-1', 2, r'width=-1 makes no network'),
    ('advise', '--images=/nowhere', 2, r'There is no folder /nowhere'),
    ('advise', '--images={empty}', 2, r'holds no images'),
    ('advise', '--wanted-test-resolution=8', 2, r'wanted_test_resolution=8 is too small'),
    ('advise', '--images-per-second=900', 2, r'go together: give both or neither'),
    ('advise', '--images-per-second=-1 --max-milliseconds=2', 2, r'images_per_second=-1.0 is not above 0'),
    # Scores of extractions.
    ('extract', '', 2, r'required: .*OUT. See .*extract --help'),
    ('extract', 'scor {extracted}', 2, r'expected NETWORK IMAGES OUT, or score DIR, found scor '),
    ('extract', 'score {new}', 2, r'labels.npy is not there: give a folder that fixres extract has written'),
    ('extract', 'score {extracted} {extracted} {extracted}', 2, r'3 folders were given; expected one or two'),
    ('extract', 'score {extracted} {other_labels}', 2, r'are not of the same images: their labels differ'),
    ('extract', 'score {short_softmax}', 1, r'have shapes \(4,\) and \(3, 4\): expected \[N\]'),
    ('extract', 'score {wrong_label}', 1, r'names class 7 of 4'),
    # Weights.
    ('convert', '', 2, r'expected 3 arguments, found 0'),
    ('convert', 'resnet50 {file}', 2, r'expected 3 arguments, found 2'),
    ('convert', 'resnet50 /nowhere.pth {out}', 2, r'There is no weight file /nowhere.pth'),
    ('convert', 'resnet50 {file} {out}', 2, r'is of no known format: expected .safetensors'),
    ('convert', 'resnet50 {pth} {out}', 2, r'is no torch file, or a damaged one'),
    ('convert', '--to-torch {tiny} {out}.safetensors', 2, r'holds no network'),
    ('convert', '--to-torch {network} {out}.onnx', 2, r'onnx'),
    ('convert', '--resize=width resnet50 {file} {out}', 2, r"invalid choice: 'width'"),
    ('convert', 'resnet5O {safetensors} {out}', 2, r"There is no model 'resnet5O'. Did you mean 'resnet50'"),
    # Shards.
    ('prepare', '{tiny}', 2, r'the following arguments are required: out. See'),
    ('prepare', '/nowhere {out}', 2, r"There is no folder '/nowhere'"),
    ('prepare', '{tiny} {out} --split=trane', 2, r"has no split 'trane'; .* Did you mean 'train'"),
    ('prepare', '{tiny} {out} --quality=0', 2, r'--quality=0: expected 1 to 100'),
    ('prepare', '{tiny} {out} --workers=-1', 2, r'--workers=-1: expected 0 to 512'),
    ('prepare', '{tiny} {out} --short-side=big', 2, r"argument --short-side: invalid int value: 'big'"),
    ('prepare', '{tiny} {out} --runner=SlurmRunner', 2, r"argument --runner: invalid choice: 'SlurmRunner'"),
    ('prepare', '{tiny} {out} -- --direct_num_workers=2', 2, r'are options of a runner: give it too, as --runner'),
    ('prepare', '{tiny} {out} more', 2, r'unrecognized arguments: more'),
    ('prepare', '{empty} {out}', 2, r'holds no images'),
    ('prepare', '{tiny} {tiny}/train/out', 2, r'lies in .*, which is read: the shards would become a class of it'),
]  # fmt: skip

CONFIGS = {
    'no_get_config': 'config = 3\n',
    'dict': 'def get_config():\n    return {"task": "train"}\n',
    'none': 'def get_config():\n    pass\n',
    'bad_import': 'import nowhere_to_be_found\n',
    'syntax': 'def get_config():\n    return (\n',
    'raises': 'def get_config():\n    return {}["x"]\n',
    'wants_variant': 'def get_config(variant):\n    return variant\n',
    'other': 'from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({"colour": "red"})\n',
    'small': 'from configs.quickstart import get_config as quickstart\ndef get_config():\n'
    '    c = quickstart()\n    c.train.batch_size = c.model.bn_group_size = 16\n    return c\n',
    'extra': 'from configs.base import get_config as base\ndef get_config():\n'
    '    c = base()\n    c.train.momentun = 1.0\n    return c\n',
}  # fmt: skip


@pytest.fixture(scope='module')
def places(tmp_path_factory, tiny_folder):
    """Name -> path of what the command lines speak of."""
    root = tmp_path_factory.mktemp('bad')
    found = {name: root / f'{name}.py' for name in CONFIGS}
    for name, text in CONFIGS.items():
        found[name].write_text(text)
    for name, line in (('file', 'text'), ('list', 'nothing.jpg')):
        found[name] = root / f'{name}.txt'
        found[name].write_text(f'{line}\n')
    for split in ('train', 'val'):
        (root / 'empty' / split / 'class').mkdir(parents=True)
    (root / 'flat').mkdir()
    Image.fromarray(pattern(40, 40)).save(root / 'flat' / 'image.jpg')
    for name in ('case', 'classes'):
        shutil.copytree(tiny_folder, root / name)
    shutil.copytree(root / 'case' / 'val' / 'ant', root / 'case' / 'val' / 'Ant')
    (root / 'classes' / 'val' / 'dog').rename(root / 'classes' / 'val' / 'eel')
    model = models.create('resnet18', 4, width=8)
    variables = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0)))())
    about = {
        'architecture': 'resnet18',
        'width': 8,
        'train_resolution': 48,
        'class_names': ['ant', 'bee', 'cat', 'dog'],
    }
    checkpoint.save_model(epath.Path(root) / 'network', variables, about)
    (root / 'used').mkdir()
    config = flags_of('main', [f'--config={found["small"]}', f'--config.data.source={tiny_folder}']).config.to_dict()
    config['train']['lr'] = 9
    (root / 'used' / 'config.json').write_text(json.dumps(config))
    softmax, labels = np.full((4, 4), 0.25, np.float32), np.arange(4)
    for name, arrays in {
        'extracted': (labels, softmax),
        'other_labels': (labels[::-1], softmax),
        'short_softmax': (labels, softmax[:3]),
        'wrong_label': (labels + 4, softmax),
    }.items():
        (root / name).mkdir()
        for file, array in zip(('labels', 'softmax'), arrays, strict=True):
            np.save(root / name / f'{file}.npy', array)
    (root / 'weights.pth').write_bytes(b'')
    save_file(
        {'fc.weight': np.zeros((4, 512), np.float32), 'fc.bias': np.zeros(4, np.float32)}, root / 'weights.safetensors'
    )
    for split in ('train', 'val'):
        for name in ('broken_manifest', 'no_manifest'):
            (root / name / split).mkdir(parents=True)
        (root / 'broken_manifest' / split / 'manifest.json').write_text('{')
        (root / 'no_manifest' / split / 'images-00000-of-00001.array_record').write_bytes(b'')
    here = {path.name: path for path in root.iterdir() if path.is_dir()}
    return (
        found
        | here
        | {'tiny': tiny_folder, 'new': root / 'new', 'out': root / 'out', 'pth': root / 'weights.pth'}
        | {'safetensors': root / 'weights.safetensors'}
    )


@pytest.fixture(autouse=True)
def _own_log():
    """Give the program's log back to the tests that follow."""
    log, verbosity = logging.getLogger('fixres_jax'), absl_logging.get_verbosity()
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)
    absl_logging.set_verbosity(verbosity)


def flags_of(program, arguments, required=('config',)):
    """Parse a command line as `main` or `dryrun` does."""
    values, argv = flags.FlagValues(), [program, *arguments]
    command_line.define(values, argv)
    if program == 'dryrun':
        dryrun.define(values)
    sys.modules.pop('config_config', None)  # ml_collections gives every config file this name
    command_line.parse(argv, required, values)
    return values


PROGRAMS = {
    'main': lambda argv: main.run(flags_of('main', argv, ('config', 'workdir'))),
    'dryrun': lambda argv: command.run(dryrun.compile_all, flags_of('dryrun', argv)),
    'advise': lambda argv: command.run(advise.main, argv),
    'extract': extract.main,
    'convert': convert.main,
    'prepare': lambda argv: command.run(prepare.main, argv),
}


def check(program, line, code, expected, places, capfd):
    """Run a command line; compare its exit code and the one line that it prints."""
    try:
        ended = PROGRAMS[program](shlex.split(line.format(**places)))
    except SystemExit as error:
        ended = error.code
    printed = capfd.readouterr().err.splitlines()
    assert ended == code and len(printed) == 1, printed
    assert printed[0].startswith('fixres_jax: '), printed
    for name, path in places.items():
        expected = expected.replace(f'{{{name}}}', str(path))
    assert re.search(expected, printed[0]), printed[0]


@pytest.mark.parametrize('values, expected', VALUES, ids=[values for values, _ in VALUES])
def test_a_wrong_value_is_one_line_and_exit_code_2(values, expected, places, capfd):
    quoted = ' '.join(shlex.quote(value) for value in values.split(' '))
    line = f'--config=configs/quickstart.py --workdir={{new}} --config.data.source={{tiny}} {quoted}'
    check('main', line, 2, expected, places, capfd)
    assert not places['new'].exists() or not (places['new'] / 'train').exists()


@pytest.mark.parametrize('program, line, code, expected', COMMANDS, ids=[f'{row[0]} {row[1]}' for row in COMMANDS])
def test_a_wrong_command_line_is_one_line(program, line, code, expected, places, capfd):
    check(program, line, code, expected, places, capfd)


def test_the_table_is_long():
    assert len(VALUES) + len(COMMANDS) >= 115
