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
      source: where the figures stand.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str


GIB = 2**30
# By jax's `device_kind`. The TPU pages give link bandwidth both ways together (v5e: 400 GB/s); half of it is one way.
CHIPS = {
    'TPU v4': Chip(
        275e12,
        32 * GIB,
        1200e9,
        300e9,
        'https://cloud.google.com/tpu/docs/v4; links: 6 of 50 GB/s, Jouppi et al., "TPU v4", ISCA 2023, table 4',
    ),
    'TPU v5 lite': Chip(197e12, 16e9, 819e9, 200e9, 'https://cloud.google.com/tpu/docs/v5e'),
    'TPU v5': Chip(459e12, 95e9, 2765e9, 600e9, 'https://cloud.google.com/tpu/docs/v5p'),
    'TPU v6 lite': Chip(918e12, 32e9, 1638e9, 400e9, 'https://cloud.google.com/tpu/docs/v6e'),
}
