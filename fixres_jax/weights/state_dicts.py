"""Torch's weight files as dicts of numpy arrays: safetensors without torch, pickles through torch's safe loader."""

import argparse
import contextlib
import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from fixres_jax.core import command, files
from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.weights import timm_config

PICKLES = ('.pth', '.pt', '.bin', '.tar')
WRAPPERS = ('model', 'state_dict', 'model_state_dict')  # 'model' is the FixRes releases'
EMA_WRAPPERS = ('state_dict_ema', 'model_ema')
# How a pickle that torch.save did not write begins, by its protocol; torch's older format begins with a number.
PICKLE_STARTS = (b'\x80', b'(dp', b'(lp', b'}q', b']q')
TORCH_NUMBER = 0x1950A86A20F9469CFC6C.to_bytes(10, 'little')
IGNORED = ('n_averaged',)  # torch's AveragedModel counts its updates
HEADER_KEY = 'fixres'  # of our metadata in a safetensors header
SAFETENSORS_DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
    'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip


def load(path: str | Path, *, ema: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a state_dict, out of its wrapper and without its prefixes.

    Args:
      path: a .safetensors, .pth, .pt, .bin or .tar file (torch's zip format or the older one).
      ema: take the moving average of the weights where a checkpoint holds both.

    Returns:
      state_dict: torch name -> array; mapped from the file where its format allows.
      metadata: what `save` wrote beside the weights; for the files of others at most 'architecture', where a training
        script has saved that name beside the weights.

    Raises:
      UsageError: when the file is absent, of another format, damaged, or holds more than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'There is no weight file {path}.')
    if path.suffix == '.safetensors':
        content, metadata = _read_safetensors(path)
    elif path.suffix in PICKLES:
        content = _read_pickle(path)
        named = isinstance(content, Mapping) and isinstance(content.get('arch'), str)
        metadata = {'architecture': content['arch']} if named else {}
    else:
        raise UsageError(f'{path} is of no known format: expected .safetensors, {", ".join(PICKLES)}.')
    state_dict = _strip(_unwrap(content, path, ema))
    return {name: _to_numpy(name, value, path) for name, value in state_dict.items()}, metadata


def save(path: str | Path, state_dict: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a state_dict as .safetensors, with the metadata in its header, or as a bare torch pickle.

    The header also has timm's `pretrained_cfg`, for those who give it to `timm.create_model`.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        header = {HEADER_KEY: json.dumps(metadata), 'format': 'pt'}
        if 'architecture' in metadata:
            header['pretrained_cfg'] = json.dumps(timm_config.to_timm(metadata)['pretrained_cfg'])
        with files.whole(path) as temporary:
            safetensors.numpy.save_file(dict(state_dict), temporary, metadata=header)
    elif path.suffix in ('.pth', '.pt', '.bin'):
        torch = _torch(path)
        # To a file of Python's, whose errors say what is wrong with the disk.
        with files.whole(path) as temporary, temporary.open('wb') as file:
            torch.save({name: torch.from_numpy(array) for name, array in state_dict.items()}, file)
    else:
        raise UsageError(f'{path} is of no known format: expected .safetensors, .pth, .pt or .bin.')


def save_folder(folder: str | Path, state_dict: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a folder that timm loads as 'local-dir:FOLDER', and that may go to Hugging Face as it is.

    Raises:
      UsageError: for a folder that is not empty.
    """
    folder = Path(command.empty_folder(str(folder)))
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / timm_config.WEIGHTS[0], state_dict, metadata)
    files.write_json(folder / timm_config.CONFIG, timm_config.to_timm(metadata))


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    # The library's numpy reader knows no bfloat16 and copies; the format is a header and the bytes.
    try:
        with path.open('rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            if length > path.stat().st_size:
                raise ValueError('the header is longer than the file')
            header = json.loads(file.read(length))
        metadata = json.loads(header.pop('__metadata__', {}).get(HEADER_KEY, '{}'))
        data = np.memmap(path, np.uint8, 'r', offset=8 + length)
        for name, entry in header.items():
            if entry['dtype'] not in SAFETENSORS_DTYPES:
                raise _not_plain(path, name, entry['dtype'])
        return {name: _view(data, entry) for name, entry in header.items()}, metadata
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f'{path} is no safetensors file, or a damaged one: {_line(error)}.') from error


def _view(data: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry['data_offsets']
    dtype, shape = np.dtype(SAFETENSORS_DTYPES[entry['dtype']]), entry['shape']
    if end > data.size or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError('the file ends before its arrays do')
    return data[begin:end].view(dtype).reshape(shape)


def _read_pickle(path: Path) -> Any:
    torch = _torch(path)
    _refuse_foreign(path)
    # Plain data that training scripts save beside the weights: their options and numpy's numbers.
    harmless = [
        argparse.Namespace,
        np.dtype,
        *{type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool')},
        (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
        (np._core.multiarray.scalar, 'numpy._core.multiarray.scalar'),
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = re.search(r'.*(unsupported global|unrecognized).*?(?=\. Please|$)', str(error), re.I | re.M)
        if reason:
            raise UsageError(
                f'{path} is refused: it holds more than weights ({reason[0].strip()}), and loading it could '
                'run code. Save the weights alone, with torch.save(model.state_dict(), path), where you trust it.'
            ) from error
        raise UsageError(f'{path} is no torch file, or a damaged one: {_line(error)}.') from error


def _refuse_foreign(path: Path) -> None:
    """Refuse what torch.save did not write, TorchScript and other pickles."""
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise UsageError(
                    f'{path} is TorchScript, a program with its weights: expected weights alone. Where you trust it: '
                    "torch.save(torch.jit.load(path).state_dict(), 'weights.pth')."
                )
        return
    with path.open('rb') as file:
        start = file.read(32)
    if start.startswith(PICKLE_STARTS) and TORCH_NUMBER not in start:
        raise UsageError(
            f'{path} is a pickle that torch.save did not write, and loading it could run code. Where you trust it, '
            'load it and save the arrays with torch.save or safetensors.numpy.save_file.'
        )


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f'{path} needs torch: pip install "fixres-jax[torch]", or use .safetensors, which needs none.'
        ) from error
    return torch


def _line(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text[:160]}' if text else type(error).__name__


def _unwrap(content: Any, path: Path, ema: bool) -> dict[str, Any]:
    """Return the dict of weights within a checkpoint."""
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f'{path} holds {"nothing" if content == {} else type(content).__name__}: expected weights.')
    has_ema = [key for key in EMA_WRAPPERS if isinstance(content.get(key), Mapping)]
    wrappers = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    if ema and not has_ema:
        raise UsageError(f'{path} holds no moving average of the weights: leave out --ema.')
    if has_ema and not ema and not wrappers:
        raise UsageError(f'{path} holds only a moving average of the weights ({has_ema[0]}): add --ema.')
    if has_ema and not ema:
        log.warning('%s holds a moving average of the weights too (%s): --ema takes that.', path, has_ema[0])
    if ema or wrappers:
        return _unwrap(content[has_ema[0] if ema else wrappers[0]], path, False)
    return dict(content)


def _strip(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefixes that all names have: of DataParallel, torch.compile, Lightning or one's own module."""
    state_dict = {name: value for name, value in state_dict.items() if name not in IGNORED}
    prefixes = {name.partition('.')[0] for name in state_dict}
    # An array right below the prefix belongs to a layer, such as a classifier that was saved alone.
    if len(prefixes) == 1 and all(name.count('.') > 1 for name in state_dict):
        return _strip({name.partition('.')[2]: value for name, value in state_dict.items()})
    return state_dict


def _to_numpy(name: str, value: Any, path: Path) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, 'detach'):
        raise UsageError(f'{path}: {name!r} is {type(value).__name__}, not an array. Save the state_dict alone.')
    value = value.detach()
    try:
        return (value if value.dtype.itemsize != 2 else value.float()).numpy()
    except TypeError as error:  # sparse, quantized, of 8 bits, or without values
        kinds = [str(value.layout).removeprefix('torch.'), value.device.type, str(value.dtype).removeprefix('torch.')]
        raise _not_plain(path, name, ' '.join(kind for kind in kinds if kind not in ('strided', 'cpu'))) from error


def _not_plain(path: Path, name: str, kind: str) -> UsageError:
    return UsageError(
        f'{path}: {name!r} is {kind}; expected a dense array of float32, float16 or bfloat16. Save the weights so, any '
        'scales multiplied in.'
    )
