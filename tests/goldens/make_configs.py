"""Write every named config, field by field, to tests/goldens/configs/: python tests/goldens/make_configs.py

A changed default then shows in review, in every config that it reaches.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path(__file__).resolve().parent / 'configs'
RECIPES = (
    'resnet50_cutmix', 'resnet50_v2', 'resnet50_a1', 'resnet50_a3', 'efficientnet_b0', 'convnext_tiny', 'deit3_small',
)  # fmt: skip


def dump(config, prefix: str = '') -> str:
    """Return the lines `field = value` of a config, sorted by field."""
    return ''.join(
        dump(value, f'{prefix}{name}.') if hasattr(value, 'items') else f'{prefix}{name} = {value!r}\n'
        for name, value in config.items()
    )


def named_configs():
    """Yield (file name, config) of every config and variant; of the long table of finetune only the default."""
    from configs import resnet50, resnet50_ffcv, transfer

    variants = {
        'base': [None],
        'quickstart': [None],
        'robustness': [None],
        'imagenette': ['small', 'plain', 'resnet50'],
        'resnet50': resnet50.RESOLUTIONS,
        'resnet50_ffcv': resnet50_ffcv.LARGER_FROM,
        'finetune': ['resnet50', 'paper'],
        'transfer': [*transfer.DATASETS, 'grocery,tf_efficientnet_lite0'],
    } | dict.fromkeys(RECIPES, [None])
    for name, choices in variants.items():
        get_config = importlib.import_module(f'configs.{name}').get_config
        for variant in choices:
            yield (f'{name}_{variant}', get_config(variant)) if variant else (name, get_config())


def texts():
    """Return {file name: content}: every named config, and what the models of finetune change in the paper's."""
    from configs import finetune

    found = {name: dump(config) for name, config in named_configs()}
    default = set(found['finetune_paper'].splitlines())
    lines = []
    for variant in finetune.TABLE:
        changed = [line for line in dump(finetune.get_config(f'{variant},paper')).splitlines() if line not in default]
        lines += [variant, *(f'  {line}' for line in changed)]
    return found | {'finetune': '\n'.join(lines) + '\n'}


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob('*.txt'):
        old.unlink()
    for name, text in texts().items():
        (FOLDER / f'{name}.txt').write_text(text)
