"""Learning rates: the rules that scale them to a batch, and their schedules; pure functions."""

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


def _step(lr: float, num_steps: int, decay_every_steps: int) -> optax.Schedule:
    return optax.exponential_decay(lr, max(1, decay_every_steps), 0.1, staircase=True)


def _cosine(lr: float, num_steps: int, decay_every_steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(lr, max(1, num_steps))


def _constant(lr: float, num_steps: int, decay_every_steps: int) -> optax.Schedule:
    return optax.constant_schedule(lr)


SCHEDULES = {'step': _step, 'cosine': _cosine, 'constant': _constant}


def make_schedule(
    name: str, lr: float, *, num_steps: int, decay_every_steps: int = 0, warmup_steps: int = 0
) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Args:
      name: 'step' (times 0.1 every `decay_every_steps`, as the paper trains), 'cosine' (to zero) or 'constant'.
      lr: the learning rate after warm-up.
      num_steps: steps of the whole run, warm-up included.
      decay_every_steps: used by 'step' only.
      warmup_steps: steps of linear rise from zero; 0 for none.

    Raises:
      UsageError: for a name that is none of these.

    >>> schedule = make_schedule('step', 0.1, num_steps=90, decay_every_steps=30)
    >>> [round(float(schedule(step)), 6) for step in (0, 29, 30, 60)]
    [0.1, 0.1, 0.01, 0.001]
    """
    if name not in SCHEDULES:
        raise UsageError(f'schedule={name!r} is not one of {", ".join(SCHEDULES)}.{nearest(name, SCHEDULES)}')
    after = SCHEDULES[name](lr, num_steps - warmup_steps, decay_every_steps)
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), after], [warmup_steps])
