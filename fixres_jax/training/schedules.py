"""Learning rates: the rules that scale them to a batch, and their schedules; pure functions."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax

from fixres_jax.core.errors import UsageError, nearest

# The learning rate of a global batch. 'fixres' is the reference's rule: its base is for one GPU of eight at batch 512.
LR_RULES = {
    'fixres': lambda base, batch_size: 8 * base * batch_size / 512,
    'batch/256': lambda base, batch_size: base * batch_size / 256,
    'none': lambda base, batch_size: base,
}


def learning_rate(base: float, batch_size: int, rule: str) -> float:
    """Scale a base learning rate to a global batch by a named rule of `LR_RULES`.

    >>> round(learning_rate(0.02, 512, 'fixres'), 3)  # the reference's, from scratch
    0.16
    >>> learning_rate(0.1, 512, 'batch/256')
    0.2
    """
    if rule not in LR_RULES:
        raise UsageError(f'lr_rule={rule!r} is not one of {", ".join(LR_RULES)}.{nearest(rule, LR_RULES)}')
    return LR_RULES[rule](base, batch_size)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Say how a learning rate falls.

    Attributes:
      num_steps: steps that it falls over.
      decay_every_steps: of 'step'.
      decay_rate: likewise, what it is multiplied by.
      power: of 'polynomial'.
      final_lr: what 'cosine', 'polynomial' and 'one_cycle' end with.
    """

    num_steps: int
    decay_every_steps: int = 0
    decay_rate: float = 0.1
    power: float = 1.0
    final_lr: float = 0.0


def _step(lr: float, s: Shape) -> optax.Schedule:
    return optax.exponential_decay(lr, max(1, s.decay_every_steps), s.decay_rate, staircase=True)


def _cosine(lr: float, s: Shape) -> optax.Schedule:
    return optax.cosine_decay_schedule(lr, max(1, s.num_steps), alpha=s.final_lr / lr if lr else 0.0)


def _polynomial(lr: float, s: Shape) -> optax.Schedule:
    return optax.polynomial_schedule(lr, s.final_lr, s.power, max(1, s.num_steps))


def _constant(lr: float, s: Shape) -> optax.Schedule:
    return optax.constant_schedule(lr)


# 'one_cycle' falls as 'cosine' does; it differs in the way it rises.
SCHEDULES: dict[str, Callable[[float, Shape], optax.Schedule]] = {
    'step': _step,
    'cosine': _cosine,
    'polynomial': _polynomial,
    'one_cycle': _cosine,
    'constant': _constant,
}


def make_schedule(
    name: str,
    lr: float,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    warmup_prefix: bool = True,
    hold_steps: int = 1,
    **shape: float,
) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Args:
      name: 'step' (times 0.1 every `decay_every_steps`, as the paper trains), 'cosine', 'polynomial', 'one_cycle' (up
        by half a cosine and down by another, as torch's OneCycleLR) or 'constant'.
      lr: the learning rate after warm-up.
      num_steps: steps of the whole run, warm-up included.
      warmup_steps: steps of linear rise; 0 for none.
      warmup_lr: what it rises from.
      warmup_prefix: whether the schedule begins after the warm-up; or else at the first step, and the warm-up hides its
        beginning.
      hold_steps: the learning rate changes only at multiples of this, such as the steps of an epoch.
      **shape: other fields of `Shape`.

    Raises:
      UsageError: for a name that is none of these.

    >>> schedule = make_schedule('step', 0.1, num_steps=90, decay_every_steps=30)
    >>> [round(float(schedule(step)), 6) for step in (0, 29, 30, 60)]
    [0.1, 0.1, 0.01, 0.001]
    """
    if name not in SCHEDULES:
        raise UsageError(f'schedule={name!r} is not one of {", ".join(SCHEDULES)}.{nearest(name, SCHEDULES)}')
    if name == 'one_cycle':
        schedule = _one_cycle(lr, warmup_steps, warmup_lr, Shape(num_steps, **shape))
    else:
        after = SCHEDULES[name](lr, Shape(num_steps - warmup_steps * warmup_prefix, **shape))
        schedule = _warmed_up(after, lr, warmup_steps, warmup_lr, warmup_prefix)
    if hold_steps > 1:
        return lambda step: schedule(step // hold_steps * hold_steps)
    return schedule


def _warmed_up(after: optax.Schedule, lr: float, steps: int, start: float, prefix: bool) -> optax.Schedule:
    if not steps:
        return after
    rise = optax.linear_schedule(start, lr, steps)
    if prefix:
        return optax.join_schedules([rise, after], [steps])
    return lambda step: jnp.where(step < steps, rise(step), after(step))


def _one_cycle(lr: float, rise_steps: int, start: float, s: Shape) -> optax.Schedule:
    """Rise over the first `rise_steps` steps, the last of which is at the top; the run's last is at the end."""
    top = max(rise_steps - 1, 0)
    fall = _cosine(lr, dataclasses.replace(s, num_steps=s.num_steps - 1 - top))
    if not top:
        return fall

    def rise(step):
        return start + (lr - start) * (1 - jnp.cos(jnp.pi * step / top)) / 2

    return optax.join_schedules([rise, fall], [top])
