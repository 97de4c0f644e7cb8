"""Compile a config's steps for devices that are not here, and say what they would take of each.

    fixres dryrun --config resnet50 --topology v5e:16x16 [--config.field=value ...]
    fixres dryrun --config resnet50 --topology h100:8
    fixres dryrun --config configs/quickstart.py --devices 8

TPU programs come from the real TPU compiler, which the PyPI package libtpu holds; no TPU is needed. Programs for H100
GPUs come from the compiler in the CUDA build of jax; no GPU is needed. `--devices` compiles for that many virtual CPU
devices.
"""

# The modules that import jax are imported late: the environment is set before.

import dataclasses
import functools
import json
import os
from typing import Any

from absl import app, flags

from fixres_jax.core import command
from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.runs import command_line

STEPS = ('train', 'finetune', 'evaluate')
ASSUMPTIONS = (
    'Each bound is a limit of its own. Arithmetic: convolutions and products at peak bfloat16 speed; it sees no '
    'memory. Memory: all bytes at full bandwidth, without the padding of layouts; it sees no arithmetic, and no cache '
    "of a GPU. Cycles: the sum of the TPU compiler's own estimates of operations; it sees no waiting for copies, and "
    'some operations have no estimate. Links: collectives around a ring over all links. The estimate is the largest of '
    'the first three and then the links, though they may overlap; images are always ready. docs/scaling.md says more.'
)


def define(values: flags.FlagValues) -> None:
    """Define the flags of the dry run, beside those of a run."""
    images = 'for the hours; those of ImageNet.'
    for make, name, default, about in (
        (
            flags.DEFINE_string,
            'topology',
            None,
            'TPU topology, such as v5e:16x16 or v5p:2x2x1; or h100, or up to h100:8.',
        ),
        (flags.DEFINE_integer, 'devices', None, 'Virtual CPU devices instead of a topology.'),
        (flags.DEFINE_list, 'steps', list(STEPS), f'Which steps to compile, of {", ".join(STEPS)}.'),
        (flags.DEFINE_integer, 'train_images', 1_281_167, f'Training images, {images}'),
        (flags.DEFINE_integer, 'test_images', 50_000, f'Test images, {images}'),
        (flags.DEFINE_string, 'json', None, 'File to write everything to.'),
    ):
        make(name, default, about, flag_values=values)


define(flags.FLAGS)


def run(
    config: Any, topology: str | None, num_devices: int | None, steps: list[str], *, train_images: int, test_images: int
) -> dict[str, Any]:
    """Compile the steps of a config and print what each takes; return the same as plain values."""
    for step in steps:
        if step not in STEPS:
            raise UsageError(f'--steps={step} is not one of {", ".join(STEPS)}.{nearest(step, STEPS)}')
    for name, value in (('train_images', train_images), ('test_images', test_images)):
        if value < 1:
            raise UsageError(f'--{name}={value}: expected 1 or more, such as 1281167.')
    os.environ['JAX_PLATFORMS'] = 'cpu'  # before the config is read, which imports jax
    from fixres_jax import models
    from fixres_jax.machines import targets
    from fixres_jax.runs import dry_run, networks, settings

    s = settings.read(config)
    architecture, _ = networks.identify(s, {})
    settings.check_architecture(s, architecture, models.find(architecture))
    target = targets.find(topology, num_devices)
    name, devices = topology or f'{num_devices} virtual CPU devices', target.devices
    machine = dry_run.DryRun(s, target, train_images=train_images, test_images=test_images)
    print(f'{machine.model_name} on {name}: {len(devices)} devices of kind {devices[0].device_kind}')
    if not s.test.resolution:
        print(f'The test resolution is not known before the run: taken as {machine.test_resolution}.')
    values = []
    for step in steps:
        values.append(dry_run.report(step, machine.compile(step), target))
        print(dry_run.describe(values[-1], target), flush=True)
    result = {'model': machine.model_name, 'devices': name, 'num_devices': len(devices), 'steps': values}
    if target.chip is not None:
        result |= {'hours': sum(value['hours'] for value in values), 'chip': dataclasses.asdict(target.chip)}
        result['assumptions'] = ASSUMPTIONS
        print(f'These steps of the whole config: about {result["hours"]:.2f} h. {ASSUMPTIONS}')
    return result


def main(argv: list[str]) -> int:
    """Run from the command line; return the exit code."""
    del argv
    return command.run(compile_all, flags.FLAGS)


def compile_all(values: flags.FlagValues) -> None:
    """Do what the flags say."""
    images = {'train_images': values.train_images, 'test_images': values.test_images}
    result = run(values.config, values.topology, values.devices, values.steps, **images)
    if values.json:
        with open(values.json, 'w') as file:
            file.write(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    app.run(main, flags_parser=functools.partial(command_line.parse, required=('config',)))
