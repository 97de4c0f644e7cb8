"""libtpu on a machine without a TPU, where it fails at length on the error stream before jax goes on with the CPU."""

import importlib.util
import os
from pathlib import Path

import jax

GOOGLE = '0x1ae0'  # vendor of PCI devices
DEVICES = ('dev/accel*', 'dev/vfio/[0-9]*', 'dev/nvidia*', 'dev/kfd', 'dev/dxg')  # TPUs, GPUs of NVIDIA and of AMD

SETTINGS = ('JAX_PLATFORM', 'JAX_FORCE_TPU_INIT', 'TPU_', 'PJRT_')  # beginnings of variables by which a user chooses
SET_BY_JAX = {'TPU_SKIP_MDS_QUERY', 'TPU_LIBRARY_PATH'}  # when it is imported where libtpu is and no TPU


def leave_out(root: Path = Path('/')) -> bool:
    """Let jax use the CPU at once where libtpu is installed and there is no sign of a TPU or a GPU.

    Any sign, in files or in the environment, leaves the choice to jax, which says what it cannot open.

    Args:
      root: of the file system.

    Returns:
      Whether libtpu is left out. Before jax is used this is all it takes; after that it has no effect.
    """
    if importlib.util.find_spec('libtpu') is None or any(path for name in DEVICES for path in root.glob(name)):
        return False
    if any(name.startswith(SETTINGS) and name not in SET_BY_JAX for name in os.environ):
        return False
    if any(path.read_text().strip() == GOOGLE for path in root.glob('sys/bus/pci/devices/*/vendor')):
        return False
    if not jax.config.jax_platforms:
        jax.config.update('jax_platforms', 'cpu')
    return True
