"""Compile a config's steps for devices that are not here, and say what they would take of each.

    python -m fixres_jax.dryrun --config configs/resnet50.py --topology v5e:16x16 [--config.field=value ...]
    python -m fixres_jax.dryrun --config configs/quickstart.py --devices 8

TPU programs come from the real TPU compiler, which the PyPI package libtpu holds; no TPU is needed. `--devices`
compiles for that many virtual CPU devices. The modules that import jax are imported late: the environment is set
before.
"""

import dataclasses
import functools
import importlib.util
import json
import os
from typing import Any

from absl import app, flags

from fixres_jax.core import command
from fixres_jax.core.errors import RunError, UsageError, nearest
from fixres_jax.runs import command_line

STEPS = ('train', 'finetune', 'evaluate')
ASSUMPTION = (
    'Times are the least that the published figures allow: each step computes at peak bfloat16 speed while all its '
    'bytes move at full memory bandwidth, whichever is longer, and then passes its collectives around a ring over all '
    'links; images are always ready. Real steps take longer.'
)


def define(values: flags.FlagValues) -> None:
    """Define the flags of the dry run, beside those of a run."""
    images = 'for the hours; those of ImageNet.'
    for make, name, default, about in (
        (flags.DEFINE_string, 'topology', None, 'TPU topology, such as v5e:16x16 or v5p:2x2x1.'),
        (flags.DEFINE_integer, 'devices', None, 'Virtual CPU devices instead of a topology.'),
        (flags.DEFINE_list, 'steps', list(STEPS), f'Which steps to compile, of {", ".join(STEPS)}.'),
        (flags.DEFINE_integer, 'train_images', 1_281_167, f'Training images, {images}'),
        (flags.DEFINE_integer, 'test_images', 50_000, f'Test images, {images}'),
        (flags.DEFINE_string, 'json', None, 'File to write everything to.'),
    ):
        make(name, default, about, flag_values=values)


define(flags.FLAGS)


def open_devices(topology: str | None, num_devices: int | None) -> tuple[list[Any], Any, int]:
    """Return (devices, their `chips.Chip` or None, devices of a chip).

    Raises:
      UsageError: unless one of the two is given and known.
    """
    if bool(topology) == bool(num_devices):
        raise UsageError('Give either --topology (such as v5e:2x2) or --devices (a number of virtual CPU devices).')
    import jax

    from fixres_jax.machines.chips import CHIPS

    if num_devices:
        jax.config.update('jax_num_cpu_devices', num_devices)
        return jax.devices(), None, 1
    if importlib.util.find_spec('libtpu') is None:
        raise RunError('TPU programs need the TPU compiler: pip install libtpu.')
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_STDERR_LOG_LEVEL': '3'}
    os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # Nothing here opens a TPU, of which there may be one process only.
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    except Exception as error:
        raise UsageError(f'--topology={topology} is not a topology of this libtpu: {str(error)[:200]}') from error
    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise UsageError(
            f'fixres_jax/machines/chips.py has no published figures of {kind}, only of {", ".join(CHIPS)}.'
        )
    return devices, CHIPS[kind], len(devices) // len({tuple(device.coords) for device in devices})


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
    from fixres_jax.runs import dry_run, networks, settings

    s = settings.read(config)
    architecture, _ = networks.identify(s, {})
    settings.check_architecture(s, architecture, models.find(architecture))
    devices, chip, devices_per_chip = open_devices(topology, num_devices)
    name = topology or f'{num_devices} virtual CPU devices'
    machine = dry_run.DryRun(s, devices, train_images=train_images, test_images=test_images)
    print(f'{machine.model_name} on {name}: {len(devices)} devices of kind {devices[0].device_kind}')
    if not s.test.resolution:
        print(f'The test resolution is not known before the run: taken as {machine.test_resolution}.')
    values = []
    for step in steps:
        values.append(dry_run.report(step, machine.compile(step), devices, chip, devices_per_chip))
        print(dry_run.describe(values[-1], chip), flush=True)
    result = {'model': machine.model_name, 'devices': name, 'num_devices': len(devices), 'steps': values}
    if chip is not None:
        result |= {'hours': sum(value['hours'] for value in values), 'chip': dataclasses.asdict(chip)}
        result['assumption'] = ASSUMPTION
        print(f'These steps of the whole config: at best {result["hours"]:.2f} h. {ASSUMPTION}')
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
