"""Freeze what torchvision makes of images: `python tests/goldens/make_transforms.py FOLDER_OF_PHOTOGRAPHS`.

Needs torchvision; the tests that read transforms.json do not. Pixels are kept as checksums: they must be equal.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

SIZES = {'4:3': (200, 150), 'square': (150, 150), '3:4': (150, 200), '10:1': (400, 40)}
RESOLUTIONS = (16, 33, 64, 96, 112, 128, 160, 224)
NUM_BOXES = 20_000
FACTORS = ((0.71, 1.29, 0.85), (1.3, 0.7, 1.1), (1.0, 1.15, 0.7), (0.0, 2.5, 3.0))
ORDERS = ((0, 1, 2), (2, 1, 0), (1, 0, 2))


def draw(width: int, height: int) -> np.ndarray:
    """Return a smooth picture with hard edges and noise, uint8[height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + y / 13), np.cos(x / 5 - y / 17), np.sin((x + y) / 11)], axis=-1)
    image = 128 + 90 * waves + np.random.default_rng(width * height).normal(0, 12, waves.shape)
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 5, 130)
    return image.clip(0, 255).astype(np.uint8)


def checksum(pixels) -> str:
    """Return a short checksum of an image's shape and pixels."""
    pixels = np.ascontiguousarray(pixels)
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def checksums(folder: pathlib.Path, transforms: dict) -> dict[str, str]:
    """Return for each transform one checksum of what it makes of all images in a folder."""
    from PIL import Image

    digests = {name: hashlib.sha256() for name in transforms}
    for path in sorted(folder.glob('*.[jJ]*')):
        image = Image.open(path).convert('RGB')
        for name, transform in transforms.items():
            digests[name].update(np.ascontiguousarray(transform(image)).tobytes())
    return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def histograms(boxes: np.ndarray, width: int, height: int) -> dict[str, list[int]]:
    """Count crops, int[N, 4] as (left, top, width, height), by each number and by (area, aspect ratio)."""
    left, top, w, h = boxes.T
    counts = {
        'left': np.bincount(left, minlength=width),
        'top': np.bincount(top, minlength=height),
        'width': np.bincount(w, minlength=width + 1),
        'height': np.bincount(h, minlength=height + 1),
    }
    area = (w * h / (width * height)).clip(0, 0.999)
    aspect = (0.5 + np.log(w / h) / np.log(4)).clip(0, 0.999)
    counts['area'] = np.bincount((area * 100).astype(int), minlength=100)
    counts['shape'] = np.bincount((area * 10).astype(int) * 6 + (aspect * 6).astype(int), minlength=60)
    return {name: count.tolist() for name, count in counts.items()}


def main() -> None:
    import torch
    from PIL import Image
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    modes = {'bilinear': InterpolationMode.BILINEAR, 'bicubic': InterpolationMode.BICUBIC}
    golden = {'test': {}, 'height': {}, 'resized_crop': {}, 'jitter': {}, 'boxes': {}}
    of_photographs = {}
    for name, mode in modes.items():
        for size in RESOLUTIONS:
            resize = transforms.Resize(int(256 / 224 * size), mode)
            of_photographs[f'{name} {size}'] = transforms.Compose([resize, transforms.CenterCrop(size)])
    golden['photographs'] = checksums(pathlib.Path(sys.argv[1]), of_photographs)
    for shape, (width, height) in SIZES.items():
        image = Image.fromarray(draw(width, height))
        for name, mode in modes.items():
            for size in RESOLUTIONS:
                side, crop = int(256 / 224 * size), transforms.CenterCrop(size)
                resized = transforms.Resize(side, mode)(image)
                golden['test'][f'{shape} {name} {size}'] = checksum(crop(resized))
                resized = F.resize(image, [side, int(side * width / height)], mode)
                golden['height'][f'{shape} {name} {size}'] = checksum(crop(resized))
            box = (height // 5, width // 7, height // 2, width // 3)
            crop = F.resized_crop(image, *box, [64, 64], mode)
            golden['resized_crop'][f'{shape} {name}'] = checksum(crop)
        for number, factors in enumerate(FACTORS):
            for order in ORDERS:
                adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
                jittered = image
                for which in order:
                    jittered = adjust[which](jittered, factors[which])
                golden['jitter'][f'{shape} {number} {order}'] = checksum(jittered)
        torch.manual_seed(0)
        sampler = transforms.RandomResizedCrop.get_params
        drawn = [sampler(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(NUM_BOXES)]
        golden['boxes'][shape] = histograms(np.array(drawn)[:, [1, 0, 3, 2]], width, height)
    target = pathlib.Path(__file__).with_name('transforms.json')
    target.write_text(json.dumps(golden, indent=0).replace(',\n', ',').replace('[\n', '[') + '\n')


if __name__ == '__main__':
    main()
