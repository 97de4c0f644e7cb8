"""Tasks: what each value of the config's `task` does and needs, a row each."""

import dataclasses

ADAPTATIONS = {'one_pass': 'adapt', 'finetune': 'finetune'}  # the config's `adaptation` -> the phase that it is
ADAPTATION = 'ADAPTATION'  # stands for that phase in a task
CONTROL = 'control'  # the same adaptation at the training size, which the config's `control` may leave out


@dataclasses.dataclass(frozen=True)
class Task:
    """Describe a task.

    Attributes:
      phases: their names, in order.
      trains: whether it trains at the training resolution.
      needs_network: whether `init_from` must name one.
      needs_resolution: whether `test.resolution` must be given.
      chooses: whether it chooses the test resolution on held-out images, unless it is given.
      reads_training: whether it looks at training images at all.
    """

    phases: tuple[str, ...]
    trains: bool = False
    needs_network: bool = False
    needs_resolution: bool = False
    chooses: bool = False
    reads_training: bool = True


TASKS = {
    'recipe': Task(('train', 'sweep', ADAPTATION, CONTROL, 'evaluate', 'studies', 'report'), trains=True, chooses=True),
    'train': Task(('train',), trains=True),
    'adapt': Task(('adapt',), needs_network=True, needs_resolution=True),
    'finetune': Task(('finetune',), needs_network=True, needs_resolution=True),
    'evaluate': Task(('evaluate',), needs_network=True, reads_training=False),
    'extract': Task(('extract',), needs_network=True),
    'analyze': Task(('analyze',)),
}
