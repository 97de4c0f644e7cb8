"""Train, adapt and test image classifiers at the resolutions that suit them (FixRes) in JAX.

    net = fixres_jax.load('resnet50', 'resnet50.pth')
    adapted = fixres_jax.adapt(net, 'DATA/train', resolution=288)
    print(fixres_jax.evaluate({'before': net, 'after': adapted}, 'DATA/val', resolutions=(224, 288)))
    adapted.predict('cat.jpg')
    adapted.save('adapted.safetensors')

These come from `fixres_jax.library`, which is imported when one of them is first used: processes that read images
import this file too, and no jax.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixres_jax.library import Classifier, adapt, evaluate, load, random

__version__ = '0.2.0'
__all__ = ['Classifier', 'adapt', 'evaluate', 'load', 'random']


class _Package(types.ModuleType):
    """The package, in which a command's file does not hide the function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module('fixres_jax.library'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
