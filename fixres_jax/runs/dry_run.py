"""Compile the steps of a config for devices that are not here, and say what they would take of each."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fixres_jax import models
from fixres_jax.core.resolution import side
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import footprint, sharding
from fixres_jax.machines.runtime import Runtime, usual_batch
from fixres_jax.machines.targets import Target
from fixres_jax.runs import networks
from fixres_jax.runs.run import default_resolutions
from fixres_jax.runs.settings import Settings
from fixres_jax.training import state, train
from fixres_jax.training.optimization import Optimization, fitted_batch
from fixres_jax.training.programs import batch_of

STEPS = ('train', 'finetune', 'evaluate')


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Hold a compiled step.

    Attributes:
      program: of the compiler.
      trees: 'parameters' and 'optimizer', trees of shapes with shardings.
      batch_size: global.
      num_steps: steps of the whole config; of several sizes, as many at this one as cost what all do.
    """

    program: Any
    trees: dict[str, Any]
    batch_size: int
    num_steps: int


class DryRun:
    """Compile the steps of a config, one at a time.

    Args:
      s: the config.
      target: what to compile for.
      train_images, test_images: how many there are, for the number of steps.
    """

    def __init__(self, s: Settings, target: Target, *, train_images: int, test_images: int):
        self._settings = s
        self._target = target
        self._runtime = Runtime(sharding.make_mesh(target.devices), s.sharding)
        classes = tuple(f'class {number}' for number in range(s.model.num_classes or 1000))
        about = networks.describe(s, {}, classes)
        self.model_name = about['architecture']
        self._model = networks.create(s, about, target.devices[0].platform)
        held_out = round(s.data.held_out_fraction * train_images)
        self._train_images, self._held_out, self._test_images = train_images - held_out, held_out, test_images
        self._train_resolution = resolution = about['train_resolution']
        stride = models.find(self.model_name).stride
        # The paper's best size for a ResNet-50 of 224 is 288.
        self.test_resolution = s.test.resolution or stride * round(288 / 224 * resolution / stride)
        # Of several sizes the largest: it needs most memory.
        largest = max(s.train.sizes.values()) if s.trains else resolution
        self.resolution = {'train': largest, 'finetune': self.test_resolution, 'evaluate': self.test_resolution}

    def compile(self, step: str) -> dict[str, Any]:
        """Compile a step of `STEPS`; return its size, the number of its steps and its footprint."""
        began = time.monotonic()
        compile_step: Callable[[], Compiled] = {
            'train': lambda: self._compile_training('train', self._settings.train),
            'finetune': lambda: self._compile_training(
                'finetune', networks.finetuning(self._settings, self.model_name)
            ),
            'evaluate': self._compile_evaluation,
        }[step]
        compiled = compile_step()
        return {
            'resolution': self.resolution[step],
            'batch_size': compiled.batch_size,
            'num_steps': compiled.num_steps,
            'compile_seconds': time.monotonic() - began,
            'footprint': footprint.measure(compiled.program, **compiled.trees),
        }

    def _compile_training(self, step: str, how: Optimization) -> Compiled:
        runtime = self._runtime
        if not how.batch_size:
            fitted = fitted_batch(self._train_images, runtime.mesh.size * how.accumulate_steps)
            how = dataclasses.replace(how, batch_size=fitted)
        sharding.check_batch_size(how.batch_size, runtime.mesh, f'{how.PATH}batch_size', how.accumulate_steps)
        model = self._model if step == 'train' else train.regroup(self._model, how, step)
        num_steps, tx, _, step_fn = train.prepare(model, how, self._train_images, runtime)
        averages = how.average(self._train_images) is not None
        kept = {'mesh': runtime.mesh, 'layout': runtime.layout, 'averages': averages}
        blank = state.abstract(model, tx, how.trainable, **kept)
        batch = batch_of(how.batch_size, self.resolution[step], runtime.mesh)
        program = self._target.compile(step_fn, blank, batch, jax.eval_shape(lambda: jax.random.key(0)))
        trees = {'parameters': blank.variables, 'optimizer': (blank.opt_state, blank.ema)}
        if step == 'train':
            num_steps = round(num_steps * self._share_of_work(how.sizes))
        return Compiled(program, trees, how.batch_size, num_steps if how.epochs else 0)

    def _share_of_work(self, sizes: Mapping[float, int]) -> float:
        """Return the pixels of all steps, over what they would be at the size that is compiled."""
        shares = itertools.pairwise((*sizes, 1.0))
        return sum(
            (end - begin) * (size / self.resolution['train']) ** 2
            for (begin, end), size in zip(shares, sizes.values(), strict=True)
        )

    def _compile_evaluation(self) -> Compiled:
        runtime = self._runtime
        shapes = self._model.shapes()
        variables = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            shapes,
            sharding.place(shapes, runtime.mesh, runtime.layout),
        )
        batch_size = sharding.round_up(self._settings.test.batch_size or usual_batch(runtime.mesh), runtime.mesh)
        batch = batch_of(batch_size, self.test_resolution, runtime.mesh)
        step_fn = evaluate.make_eval_step(self._model, runtime.mesh)
        program = self._target.compile(step_fn, variables, batch['image'], batch['label'])
        return Compiled(program, {'parameters': variables}, batch_size, self._evaluation_steps(batch_size))

    def _evaluation_steps(self, batch_size: int) -> int:
        """Return the batches at the test resolution that cost what the sweep and the evaluation do."""
        least = self._model.architecture.min_resolution
        sizes = self._settings.test.resolutions or default_resolutions(self._train_resolution, None, least)
        pixels = sum((side(size) / side(self.test_resolution)) ** 2 for size in sizes)
        return round(pixels * (self._held_out + 2 * self._test_images) / batch_size)


def report(step: str, result: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Return a compiled step's figures as plain values for JSON; on chips, whether it fits and how long it takes."""
    found, chip = result['footprint'], target.chip
    value = {'step': step, **{name: one for name, one in result.items() if name != 'footprint'}, **vars(found)}
    if chip is not None:
        value['fits'] = found.memory <= chip.memory / target.devices_per_chip
        times = footprint.seconds(found, chip, target.num_chips, devices_per_chip=target.devices_per_chip)
        value['seconds'] = times
        value['images_per_second'] = result['batch_size'] / times['step']
        value['hours'] = result['num_steps'] * times['step'] / 3600
    return value


def describe(value: Mapping[str, Any], target: Target) -> str:
    """Return a step's figures as lines for people."""
    gb, mb = 1e9, 1e6
    size = f'{value["parameters"] / gb:.2f} GB parameters, {value["optimizer"] / gb:.2f} GB optimizer, '
    size += f'{value["temporary"] / gb:.2f} GB temporary; {value["memory"] / gb:.2f} GB in all'
    if target.chip is not None:
        size += f' of {target.chip.memory / gb:.0f} GB: {"fits" if value["fits"] else "DOES NOT FIT"}'
    work = f'{value["flops"] / 1e12:.3f} TFLOP, {value["bytes_moved"] / gb:.2f} GB moved in memory'
    if value['cycles']:
        work += f', {value["cycles"] / 1e6:.1f} million cycles'
    kinds = [f'{e["count"]} {kind} ({e["bytes"] / mb:.1f} MB)' for kind, e in sorted(value['collectives'].items())]
    lines = [
        f'{value["step"]}: {value["resolution"]} pixels, global batch {value["batch_size"]}, '
        f'compiled in {value["compile_seconds"]:.0f} s',
        f'  memory of a device: {size}',
        f'  work of a device: {work}',
        f'  between devices: {", ".join(kinds) or "nothing"}',
    ]
    if target.chip is not None:
        times = dict(value['seconds'])
        step, links = times.pop('step'), times.pop('links')
        bounds = ', '.join(f'{name} {1e3 * seconds:.1f}' for name, seconds in times.items())
        lines += [
            f'  bounds in ms: {bounds}; links {1e3 * links:.1f}',
            f'  estimate: {1e3 * step:.1f} ms a step ({max(times, key=times.get)}, then links), '
            f'{value["images_per_second"]:,.0f} images/s, {value["num_steps"]:,} steps in {value["hours"]:.2f} h',
        ]
    return '\n'.join(lines)
