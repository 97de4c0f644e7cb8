"""An adaptation alone: of a network and images that are given as values, with neither a config nor a workdir."""

import time
from collections.abc import Iterable
from typing import Any

import jax
from etils import epath

from fixres_jax.adaptation import adapt as adaptation
from fixres_jax.adaptation import embeddings
from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.core.progress import log
from fixres_jax.core.resolution import Resolution, side
from fixres_jax.data import given, sources
from fixres_jax.data.sources import Splits
from fixres_jax.machines import runtime
from fixres_jax.runs import one_pass, run, settings, shipped
from fixres_jax.runs.classifier import Classifier, names
from fixres_jax.runs.images import selection
from fixres_jax.runs.run import Run
from fixres_jax.weights.network import Network

FEW_BATCHES = 8  # whose time needs no estimate


def open_run(
    net: Network,
    data: Any,
    resolution: int | Resolution | None = None,
    resolutions: Iterable[int | Resolution] = (),
    *,
    held_out: float = 0.1,
    unseen: bool | None = None,
    workdir: epath.Path,
    **config: Any,
) -> Run:
    """Return a run for `adapt`, with everything checked; the arguments are those of `library.adapt`."""
    source, place = given.labelled(data, 'train')
    s = _settings(net, place, held_out=held_out, resolution=resolution, resolutions=resolutions, **config)
    fresh = [str(number) for number in range(int(source.labels.max()) + 1)]
    source = given.named(source, fresh if s.reset_head else names(net))
    if not resolution and not held_out:
        raise UsageError('Nothing to choose the resolution on: give held_out above 0, such as 0.1, or a resolution.')
    run.check_network(s, net)
    train, kept = sources.training_parts(source, selection(s))
    opened = run.make(s, net, Splits(train, kept, source), workdir, unseen=unseen)
    adaptation.check(opened.start, opened.images, opened.adaptation)
    return opened


def _settings(
    net: Network,
    place: str,
    *,
    held_out: float,
    resolution: int | Resolution | None,
    resolutions: Iterable[int | Resolution],
    batch_size: int = 0,
    **config: Any,
) -> settings.Settings:
    """Return the settings of an adaptation: the defaults of the configs, with batches and readers that are fitted."""
    c = shipped.base()
    c.task, c.control, c.data.source = 'adapt', False, place
    c.init_from = net.about.get('source_file') or f'the {net.about["architecture"]}'
    c.data.held_out_fraction, c.data.threads = float(held_out or 0), 0
    c.test.resolution, c.test.resolutions = resolution or 0, tuple(resolutions)
    c.test.batch_size, c.finetune.batch_size, c.model.bn_group_size = batch_size, 0, 0
    for name, value in config.items():
        section = next((one for one in (c, c.adapt) if name in one and not hasattr(one[name], 'items')), None)
        if section is None:
            raise UsageError(f'adapt takes no {name}.{nearest(name, [*c.adapt, "reset_head", "seed", "batch_size"])}')
        with section.unlocked():
            section[name] = value
    return settings.read(c)


def sizes(opened: Run) -> tuple[int | Resolution, ...]:
    """Return the test resolutions that an adaptation looks at: the given one, or those that it chooses from."""
    given_size, least = opened.settings.test.resolution, opened.train_resolution
    return (given_size,) if given_size else tuple(size for size in opened.resolutions if size >= least)


def plan(opened: Run) -> str:
    """Say in a line what an adaptation will do."""
    train, held_out, how = opened.images.train, opened.images.held_out, opened.adaptation
    batch, readers = opened.feed('').size(train), opened.runtime.threads
    pixels = ', '.join(map(str, sizes(opened)))
    chosen = '' if opened.settings.test.resolution else ', of which one is chosen'
    kept = f', {len(held_out):,} more held out' if held_out is not None else ''
    return (
        f'{opened.start.about["architecture"]} at {pixels} pixels{chosen}: one pass over {len(train):,} images{kept}, '
        f'{batch} at once, read by {readers} threads; its classifier: {adaptation.SOLVERS[how.solver]}.'
    )


def estimate(opened: Run) -> float | None:
    """Return about how many seconds the images take, from three batches at the largest size; None for few images."""
    images, feed = opened.images, opened.feed('a first batch')
    size, pixels = feed.size(images.train), max(sizes(opened))
    if len(images.train) < FEW_BATCHES * size:
        return None
    network, ended = opened.start.placed(opened.runtime), []
    step = embeddings.make_embed_step(network.model, feed.mesh)  # the one that the pass itself uses
    changes = {'before': {}, 'after': network.statistics(opened.adaptation.batch_norm)}
    first = sources.subset(images.train, range(3 * size))
    for _, _, batch in runtime.one_pass(first, opened.test_transforms((pixels,)), feed):
        jax.block_until_ready(step(network.variables, changes, batch['image'][pixels]))
        ended.append(time.monotonic())
    how, count = opened.adaptation, len(images.train)
    count = count * (1 + how.flip + how.copies) + min(how.statistics_images, count // 16) + len(images.held_out or ())
    return (ended[-1] - ended[-2]) / size * count * sum((side(other) / side(pixels)) ** 2 for other in sizes(opened))


def adapt(opened: Run) -> Classifier:
    """Adapt the network of a run from `open_run`."""
    chosen, adapted = opened.settings.test.resolution, {}
    start = opened.start.placed(opened.runtime)
    if not chosen:
        result, adapted = one_pass.sweep(opened, start, sizes(opened))
        chosen = one_pass.choose_resolution(result, opened.train_resolution)
        log.info('Test resolution %d: the best on %d held-out images.', chosen, result['count'])
        if result['images_used'] < len(opened.images.train):
            adapted = {}  # It has compared on some of the images; the network is to get all.
    if chosen not in adapted:
        adapted = one_pass.at(opened, start, chosen, 'adapt')
    result, record = adapted[chosen]
    about = opened.adapted_about | {'test_resolution': chosen}
    return Classifier(result.model, result.variables, about, record | {'test_resolution': chosen})
