"""Validation while a network trains: a glance at some held-out images, which decides nothing."""

import contextlib
from collections.abc import Callable

import jax

from fixres_jax.data import pipeline
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.evaluation.evaluate import make_eval_step, make_reduce
from fixres_jax.machines import preemption, sharding
from fixres_jax.machines.runtime import Feed
from fixres_jax.models import Model, Variables


def make_validation(
    model: Model, source: Source, transform: Transform, feed: Feed
) -> Callable[[Variables], dict[str, float] | None]:
    """Return the function (variables on the devices) -> {'validation_top1': 0 to 1, 'validation_loss'}.

    It changes nothing and draws nothing, so training goes on as without it. It returns None when a notice to stop came
    while it waited for images.
    """
    step, reduce, size = make_eval_step(model, feed.mesh), make_reduce(feed.mesh), feed.size(source)

    def validate(variables: Variables) -> dict[str, float] | None:
        sums = []
        batches = pipeline.eval_batches(source, {0: transform}, feed.runtime.readers, batch_size=size)
        with contextlib.closing(batches):
            on_device = sharding.prefetch(batches, feed.mesh)
            for _ in range(-(-len(source) // size)):
                try:
                    with preemption.reading():
                        _, batch = next(on_device)
                except preemption.Unread:
                    return None
                sums.append(reduce([step(variables, batch['image'][0], batch['label'])], batch['mask']))
        sums = jax.device_get(sums)
        hits, loss = (sum(float(one[name].sum()) for one in sums) for name in ('both', 'loss'))
        return {'validation_top1': hits / len(source), 'validation_loss': loss / len(source)}

    return validate
