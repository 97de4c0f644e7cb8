"""Freeze what torchvision's and timm's operations make of images.

`PYTHONPATH=.:tests python tests/goldens/make_augment.py` needs torchvision and timm; the tests that read augment.json
do not. Pixels are kept as checksums: they must be equal.
"""

import json
import pathlib

from PIL import Image

from goldens.make_transforms import checksum, draw

SIZES = ((61, 47), (33, 40))  # width, height
INTERPOLATIONS = ('bilinear', 'bicubic')
WARPS = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
LEVELS = (3.0, 7.0, 10.0)  # of timm's 10
COINS = (0.1, 0.9)  # what is drawn where a sign is
INCREASING = ('Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness')


def images() -> list[Image.Image]:
    """Return the pictures."""
    return [Image.fromarray(draw(*size)) for size in SIZES]


def interpolations(name: str) -> tuple[str, ...]:
    """Return the interpolations that tell an operation's results apart."""
    return INTERPOLATIONS if name in WARPS else INTERPOLATIONS[:1]


def of_torchvision() -> list[list]:
    """Return rows of (policy, number of the image, interpolation, operation, magnitude, checksum)."""
    from torchvision.transforms import InterpolationMode, autoaugment

    rows = []
    for number, image in enumerate(images()):
        size = (image.height, image.width)
        for name, space in (
            ('randaugment', autoaugment.RandAugment()._augmentation_space(31, size)),
            ('trivial', autoaugment.TrivialAugmentWide()._augmentation_space(31)),
            ('augmix', autoaugment.AugMix()._augmentation_space(10, size)),
        ):
            for operation, (magnitudes, signed) in space.items():
                values = magnitudes[[len(magnitudes) // 3, -1]].tolist() if magnitudes.ndim else [0.0]
                for magnitude in [*values, *(-value for value in values if signed)]:
                    if operation == 'Posterize' and not magnitude:
                        continue  # refused by Pillow
                    for interpolation in interpolations(operation):
                        mode = InterpolationMode(interpolation)
                        found = autoaugment._apply_op(image, operation, magnitude, mode, None)
                        rows.append([name, number, interpolation, operation, magnitude, checksum(found)])
    return rows


def of_timm() -> list[list]:
    """Return rows of (policy, image, interpolation, operation, level, coin, argument, checksum)."""
    from timm.data import auto_augment
    from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP

    from fixres_jax.data import augment

    rows, original = [], auto_augment.random.random
    for number, image in enumerate(images()):
        for policy in ('rand', 'rand-inc1'):
            for operation in augment.TIMM:
                name = f'{operation}Rel' if operation.startswith('Translate') else operation
                name += 'Increasing' * (policy == 'rand-inc1' and operation in INCREASING)
                seen: list[tuple] = []
                for level in LEVELS:
                    for coin in COINS:
                        auto_augment.random.random = lambda coin=coin: coin
                        make = LEVEL_TO_ARG[name]
                        argument = make(level, {'translate_pct': 0.45}) if make else ()
                        if (operation == 'Posterize' and not argument[0]) or argument in seen:
                            continue  # refused by Pillow; without a sign
                        seen.append(argument)
                        for interpolation in interpolations(operation):
                            how = {'resample': augment.RESAMPLING[interpolation], 'fillcolor': augment.TIMM_FILL}
                            found = NAME_TO_OP[name](image, *argument, **how)
                            value = float(argument[0]) if argument else 0.0
                            rows.append([policy, number, interpolation, operation, level, coin, value, checksum(found)])
    auto_augment.random.random = original
    return rows


def main() -> None:
    golden = {'torchvision': of_torchvision(), 'timm': of_timm()}
    text = ',\n'.join(f'"{name}": [\n' + ',\n'.join(map(json.dumps, rows)) + '\n]' for name, rows in golden.items())
    pathlib.Path(__file__).with_name('augment.json').write_text(f'{{\n{text}\n}}\n')


if __name__ == '__main__':
    import torchvision_cpu  # noqa: F401

    main()
