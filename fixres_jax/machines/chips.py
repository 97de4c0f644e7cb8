"""What the makers publish about the chips that `dryrun` compiles for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Hold the published figures of one chip.

    Attributes:
      flops: peak bfloat16 operations per second.
      memory: bytes of HBM.
      memory_bandwidth: bytes per second between HBM and the cores.
      link_bandwidth: bytes per second that leave the chip over all its links to other chips, one way.
      clock: cycles per second of its cores; None where it is not published, or the compiler counts no cycles.
      source: where the figures stand.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    clock: float | None
    source: str


GIB = 2**30
BOOK = 'https://jax-ml.github.io/scaling-book/tpus'
# By jax's `device_kind`. The TPU pages give link bandwidth both ways together (v5e: 400 GB/s); half of it is one way.
# The clock of a v5p follows from its peak: each of its 8 matrix units does 128 x 128 multiplications and as many
# additions a cycle. The clock of a v6e is not published.
CHIPS = {
    'TPU v4': Chip(
        275e12,
        32 * GIB,
        1200e9,
        300e9,
        1.05e9,
        'https://cloud.google.com/tpu/docs/v4; clock, 6 links of 50 GB/s: Jouppi et al., "TPU v4", ISCA 2023, table 4',
    ),
    'TPU v5 lite': Chip(197e12, 16e9, 819e9, 200e9, 1.5e9, f'https://cloud.google.com/tpu/docs/v5e; clock: {BOOK}'),
    'TPU v5': Chip(459e12, 95e9, 2765e9, 600e9, 1.75e9, f'https://cloud.google.com/tpu/docs/v5p; matrix units: {BOOK}'),
    'TPU v6 lite': Chip(918e12, 32e9, 1638e9, 400e9, None, 'https://cloud.google.com/tpu/docs/v6e'),
    # Peak without sparsity. The links are NVLink, within one machine of up to 8.
    'NVIDIA H100 80GB HBM3': Chip(
        989.4e12,
        80e9,
        3350e9,
        450e9,
        None,
        'https://www.nvidia.com/en-us/data-center/h100 (SXM; 1,979 TFLOPS are with sparsity, 900 GB/s are both ways)',
    ),
}
