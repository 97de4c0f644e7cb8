"""Devices that are not here, to compile for."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import topologies

from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.machines.chips import CHIPS, Chip

# What XLA must know of a GPU to compile for it: the same as its own file for the H100,
# https://github.com/openxla/xla/blob/main/xla/backends/gpu/target_config/specs/h100_sxm.txtpb, in the fields that also
# older versions of XLA have.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
MAX_GPUS = 8  # that one machine joins by NVLink
# Without a GPU there is nothing to time algorithms on; Triton's products rely on that, and some sizes fail without.
WITHOUT_GPU = {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}


@dataclasses.dataclass(frozen=True)
class Target:
    """Hold devices to compile for.

    Attributes:
      devices: of one kind.
      chip: their published figures; None for virtual ones.
      devices_per_chip: as jax counts devices.
      compiler_options: for `lowered.compile`.
    """

    devices: list[jax.Device]
    chip: Chip | None = None
    devices_per_chip: int = 1
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_chips(self) -> int:
        """Number of chips."""
        return len(self.devices) // self.devices_per_chip

    def compile(self, jitted: Callable[..., Any], *arguments: Any) -> Any:
        """Compile a jitted function for arguments given as shapes with shardings.

        Raises:
          RunError: where the program takes more memory than a device has, as far as the compiler says so.
        """
        try:
            return jitted.lower(*arguments).compile(compiler_options=dict(self.compiler_options))
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise RunError(
                f'The program does not fit: {str(error).splitlines()[0]} A smaller batch takes less, and so do '
                "train.accumulate_steps=2, model.remat='block' and sharding='fsdp'."
            ) from error


def find(topology: str | None, num_devices: int | None) -> Target:
    """Return the devices of a topology, or virtual CPU devices.

    To be called in a process with JAX_PLATFORMS=cpu, before anything ran on a device.

    Args:
      topology: 'h100', 'h100:8', or of TPUs, such as 'v5e:16x16'.
      num_devices: of the CPU, instead.

    Raises:
      UsageError: unless one of the two is given and known.
      RunError: where the compiler is not installed.
    """
    if bool(topology) == bool(num_devices):
        raise UsageError(
            'Give either --topology (such as v5e:2x2 or h100) or --devices (a number of virtual CPU devices).'
        )
    if num_devices:
        jax.config.update('jax_num_cpu_devices', num_devices)
        return Target(jax.devices())
    return _gpus(topology) if topology.startswith('h100') else _tpus(topology)


def _gpus(topology: str) -> Target:
    found = re.fullmatch(r'h100(?::(\d+))?', topology)
    count = int(found[1] or 1) if found else 0
    if not 1 <= count <= MAX_GPUS:
        raise UsageError(
            f'--topology={topology} does not name the GPUs of one machine: give h100 for one, or up to '
            f'h100:{MAX_GPUS}. Links between machines are not the same everywhere.'
        )
    try:
        described = topologies.get_topology_desc(platform='cuda', target_config=H100, topology=f'1x1x{count}')
    except NotImplementedError as error:
        raise RunError(
            'GPU programs need the compiler in the CUDA build of jax, not a GPU: '
            f'pip install "jax[cuda12]=={jax.__version__}", in an environment of its own.'
        ) from error
    return Target(described.devices, CHIPS[described.devices[0].device_kind], compiler_options=WITHOUT_GPU)


def _tpus(topology: str) -> Target:
    if importlib.util.find_spec('libtpu') is None:
        raise RunError('TPU programs need the TPU compiler: pip install libtpu.')
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_STDERR_LOG_LEVEL': '3'}
    os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # Nothing here opens a TPU, of which there may be one process only.
    try:
        devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    except Exception as error:
        raise UsageError(
            f'--topology={topology} is not a topology of this libtpu, nor h100: {str(error)[:200]}'
        ) from error
    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise UsageError(
            f'fixres_jax/machines/chips.py has no published figures of {kind}, only of {", ".join(CHIPS)}.'
        )
    return Target(devices, CHIPS[kind], len(devices) // len({tuple(device.coords) for device in devices}))
