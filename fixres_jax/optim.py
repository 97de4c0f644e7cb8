"""Learning rates, their schedules, and the SGD of torch; pure functions."""

import optax

from fixres_jax.errors import UsageError, nearest

# The learning rate of a global batch. 'fixres' is the reference's rule: its base is for one GPU of eight at batch 512.
LR_RULES = {
    'fixres': lambda base, batch_size: 8 * base * batch_size / 512,
    'batch/256': lambda base, batch_size: base * batch_size / 256,
    'none': lambda base, batch_size: base,
}


def learning_rate(base: float, batch_size: int, rule: str) -> float:
    """Scale a base learning rate to a global batch by a named rule of `LR_RULES`."""
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
    """
    if name not in SCHEDULES:
        raise UsageError(f'schedule={name!r} is not one of {", ".join(SCHEDULES)}.{nearest(name, SCHEDULES)}')
    after = SCHEDULES[name](lr, num_steps - warmup_steps, decay_every_steps)
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), after], [warmup_steps])


def make_sgd(schedule: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Return SGD as torch does it: weight decay inside the gradient, on every parameter, before the momentum.

    Source: torch.optim.SGD without dampening or Nesterov, which the reference uses.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    )
