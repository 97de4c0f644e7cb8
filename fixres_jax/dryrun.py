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
import time
from typing import Any

from absl import app, flags

from fixres_jax import command
from fixres_jax import main as command_line
from fixres_jax.errors import RunError, UsageError, nearest

STEPS = ('train', 'finetune', 'evaluate')
ASSUMPTION = (
    'Times are the least that the published figures allow: each step computes at peak bfloat16 speed while all its '
    'bytes move at full memory bandwidth, whichever is longer, and then passes its collectives around a ring over all '
    'links; images are always ready. Real steps take longer.'
)


def define(values: flags.FlagValues) -> None:
    """Define the flags of the dry run, beside those of `main`."""
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

    from fixres_jax.chips import CHIPS

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
        raise UsageError(f'fixres_jax/chips.py has no published figures of {kind}, only of {", ".join(CHIPS)}.')
    return devices, CHIPS[kind], len(devices) // len({tuple(device.coords) for device in devices})


class DryRun:
    """Compile the steps of a config, one at a time.

    Args:
      config: a ConfigDict with the fields of `configs/base.py`.
      devices: to compile for.
      train_images, test_images: how many there are, for the number of steps.
    """

    def __init__(self, config: Any, devices: list[Any], *, train_images: int, test_images: int):
        from fixres_jax import plan, sharding

        config = plan.name_network(config, {})
        with config.unlocked():
            if config.model.dtype == 'auto':
                config.model.dtype = 'bfloat16' if devices[0].platform == 'tpu' else 'float32'
        self._config, self._mesh, self.model_name = config, sharding.make_mesh(devices), config.model.name
        classes = [f'class {number}' for number in range(config.model.num_classes or 1000)]
        self._model, self._about = plan.make_model(config, {}, classes)
        held_out = round(config.data.held_out_fraction * train_images)
        self._train_images, self._held_out, self._test_images = train_images - held_out, held_out, test_images
        resolution = self._about['train_resolution']
        # The paper's best size for a ResNet-50 of 224 is 288.
        self.test_resolution = config.test.resolution or 32 * round(288 / 224 * resolution / 32)
        self.resolution = {'train': resolution, 'finetune': self.test_resolution, 'evaluate': self.test_resolution}

    def compile(self, step: str) -> dict[str, Any]:
        """Compile a step of `STEPS`; return its size, the number of its steps and its footprint."""
        from fixres_jax import footprint, sharding

        began = time.monotonic()
        if step == 'evaluate':
            compiled, trees, batch_size, num_steps, num_parts = self._compile_evaluation()
        else:
            compiled, trees, batch_size, num_steps, num_parts = self._compile_training(step)
        sharding.check_batch_size(batch_size, self._mesh, f'{step}.batch_size', num_parts)
        return {
            'resolution': self.resolution[step],
            'batch_size': batch_size,
            'num_steps': num_steps,
            'compile_seconds': time.monotonic() - began,
            'footprint': footprint.measure(compiled, **trees, num_repeats=num_parts),
        }

    def _compile_training(self, step: str) -> tuple[Any, dict[str, Any], int, int, int]:
        import jax

        from fixres_jax import plan, state, train

        o = plan.training(self._config) if step == 'train' else plan.finetuning(self._config)
        mesh, layout = self._mesh, self._config.sharding
        model = self._model if step == 'train' else train.regroup(self._model, o, step)
        num_steps, tx, _, step_fn = train.prepare(model, o, self._train_images, mesh=mesh, layout=layout)
        blank = state.abstract(self._model, tx, o.trainable, mesh=mesh, layout=layout)
        batch = self._batch(o.batch_size, self.resolution[step])
        compiled = step_fn.lower(blank, batch, jax.eval_shape(lambda: jax.random.key(0))).compile()
        trees = {'parameters': blank.variables, 'optimizer': blank.opt_state}
        return compiled, trees, o.batch_size, num_steps if o.epochs else 0, o.accumulate_steps

    def _compile_evaluation(self) -> tuple[Any, dict[str, Any], int, int, int]:
        import jax

        from fixres_jax import evaluate, sharding, state

        shapes = jax.eval_shape(lambda key: state.init_variables(self._model, key), jax.random.key(0))
        variables = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            shapes,
            sharding.place(shapes, self._mesh, self._config.sharding),
        )
        batch_size = sharding.round_up(self._config.test.batch_size, self._mesh)
        batch = self._batch(batch_size, self.test_resolution)
        step_fn = evaluate.make_eval_step(self._model, self._mesh)
        compiled = step_fn.lower(variables, batch['image'], batch['label']).compile()
        return compiled, {'parameters': variables}, batch_size, self._evaluation_steps(batch_size), 1

    def _evaluation_steps(self, batch_size: int) -> int:
        """Return the batches at the test resolution that cost what the sweep and the evaluation do."""
        from fixres_jax import plan

        sizes = self._config.test.resolutions or plan.default_resolutions(self.resolution['train'])
        pixels = sum((size / self.test_resolution) ** 2 for size in sizes)
        return round(pixels * (self._held_out + 2 * self._test_images) / batch_size)

    def _batch(self, batch_size: int, resolution: int) -> dict[str, Any]:
        import jax
        import jax.numpy as jnp

        from fixres_jax import sharding

        sharding.check_batch_size(batch_size, self._mesh, 'batch_size')
        place = sharding.by_example(self._mesh)
        return {
            'image': jax.ShapeDtypeStruct((batch_size, resolution, resolution, 3), jnp.uint8, sharding=place),
            'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=place),
        }


def report(step: str, result: dict[str, Any], devices: list[Any], chip: Any, devices_per_chip: int) -> dict[str, Any]:
    """Add to a compiled step's figures whether it fits and how long it takes; plain values for JSON."""
    from fixres_jax import footprint

    found = result.pop('footprint')
    value = {'step': step, **result, **dataclasses.asdict(found)}
    if chip is not None:
        value['fits'] = found.memory <= chip.memory / devices_per_chip
        times = footprint.seconds(found, chip, len(devices) // devices_per_chip, devices_per_chip=devices_per_chip)
        value['seconds'] = times
        value['images_per_second'] = result['batch_size'] / times['step']
        value['hours'] = result['num_steps'] * times['step'] / 3600
    return value


def describe(value: dict[str, Any], chip: Any) -> str:
    """Return a step's figures as lines for people."""
    gb, mb = 1e9, 1e6
    size = f'{value["parameters"] / gb:.2f} GB parameters, {value["optimizer"] / gb:.2f} GB optimizer, '
    size += f'{value["temporary"] / gb:.2f} GB temporary; {value["memory"] / gb:.2f} GB in all'
    if chip is not None:
        size += f' of {chip.memory / gb:.0f} GB: {"fits" if value["fits"] else "DOES NOT FIT"}'
    kinds = [f'{e["count"]} {kind} ({e["bytes"] / mb:.1f} MB)' for kind, e in sorted(value['collectives'].items())]
    lines = [
        f'{value["step"]}: {value["resolution"]} pixels, global batch {value["batch_size"]}, '
        f'compiled in {value["compile_seconds"]:.0f} s',
        f'  memory of a device: {size}',
        f'  work of a device: {value["flops"] / 1e12:.3f} TFLOP, {value["bytes_accessed"] / gb:.2f} GB moved in memory',
        f'  between devices: {", ".join(kinds) or "nothing"}',
    ]
    if chip is not None:
        parts = value['seconds']
        lines.append(
            f'  at best: {1e3 * parts["step"]:.1f} ms a step (computing {1e3 * parts["compute"]:.1f}, memory '
            f'{1e3 * parts["memory"]:.1f}, links {1e3 * parts["links"]:.1f}), '
            f'{value["images_per_second"]:,.0f} images/s, {value["num_steps"]:,} steps in {value["hours"]:.2f} h'
        )
    return '\n'.join(lines)


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
    from fixres_jax import settings

    settings.read(config)
    devices, chip, devices_per_chip = open_devices(topology, num_devices)
    name = topology or f'{num_devices} virtual CPU devices'
    dry_run = DryRun(config, devices, train_images=train_images, test_images=test_images)
    print(f'{dry_run.model_name} on {name}: {len(devices)} devices of kind {devices[0].device_kind}')
    if not config.test.resolution:
        print(f'The test resolution is not known before the run: taken as {dry_run.test_resolution}.')
    values = []
    for step in steps:
        values.append(report(step, dry_run.compile(step), devices, chip, devices_per_chip))
        print(describe(values[-1], chip), flush=True)
    result = {'model': dry_run.model_name, 'devices': name, 'num_devices': len(devices), 'steps': values}
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
