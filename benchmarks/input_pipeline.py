"""Measure images per second and core of the input pipeline, beside torchvision's DataLoader, tf.data and DALI.

    python benchmarks/input_pipeline.py IMAGES [--resolutions 128 224] [--cores 1 2] [--rounds 5] [--augment trivial]
      [--json OUT]

IMAGES is a folder of JPEG files at their original sizes (class folders or not). Every contestant reads, decodes, crops,
flips, jitters and batches the same files, from the page cache. Contestants take turns; the figures are medians over the
rounds, and the ratios medians of the ratios within a round, so that a busy machine disturbs all alike. Time is that of
the CPU, of all threads and worker processes together: what a core delivers that nothing else uses. Several cores have
as many threads, or as many worker processes if a contestant needs them. torchvision, tf.data and DALI take part where
they are installed. With --augment (trivial, randaugment or augmix) only torchvision, with its own policy of that name,
and this project take part. Linux only.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from fixres_jax.data import pipeline, sources, transforms

BATCH, COPIES = 128, 8  # images a batch; times each file is in the data set
BASE = 'torchvision DataLoader'
POLICIES = {'trivial': 'TrivialAugmentWide', 'randaugment': 'RandAugment', 'augmix': 'AugMix'}  # torchvision's names


def fixres(
    root: pathlib.Path, cores: int, resolution: int, repeats: int = 1, processes: bool = False, augment: str = ''
) -> Iterator[int]:
    """Yield batch sizes of this project's pipeline."""
    source = sources.create(str(root), '')
    transform = transforms.make_train(resolution, augment=augment)
    readers = pipeline.Readers(workers=cores, threads=1) if processes else pipeline.Readers(threads=cores)
    batches = pipeline.train_batches(
        source, transform, readers,
        batch_size=BATCH, seed=0, start_step=0, num_steps=len(source) // BATCH, repeats=repeats,
    )  # fmt: skip
    for batch in batches:
        yield len(batch['image'])


def torchvision(root: pathlib.Path, cores: int, resolution: int, augment: str = '') -> Iterator[int]:
    """Yield batch sizes of torchvision's ImageFolder and torch's DataLoader, with the usual float tensors."""
    import torch
    from torchvision import datasets
    from torchvision import transforms as T

    torch.set_num_threads(1)
    steps = [T.RandomResizedCrop(resolution), T.RandomHorizontalFlip()]
    if augment:
        steps.append(getattr(T, POLICIES[augment])(interpolation=T.InterpolationMode.BILINEAR))
    steps.append(T.ColorJitter(0.3, 0.3, 0.3))
    steps += [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    data = datasets.ImageFolder(root, T.Compose(steps))
    workers = cores if cores > 1 else 0
    for images, _ in torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True):
        yield len(images)


def tf_data(root: pathlib.Path, cores: int, resolution: int) -> Iterator[int]:
    """Yield batch sizes of tf.data with the fused decode-and-crop; its crops are smaller (see docs/data.md)."""
    import tensorflow as tf

    def load(path):
        encoded = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), max_attempts=10,
        )  # fmt: skip
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method='INTEGER_ACCURATE')
        image = tf.image.resize(image, (resolution, resolution), antialias=True)
        image = tf.image.random_flip_left_right(image) / 255
        image = tf.image.random_brightness(image, 0.3)
        image = tf.image.random_saturation(tf.image.random_contrast(image, 0.7, 1.3), 0.7, 1.3)
        return tf.cast(tf.clip_by_value(image, 0, 1) * 255, tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(sorted(map(str, root.glob('*/*')))).shuffle(10_000)
    data = files.map(load, num_parallel_calls=cores).batch(BATCH, drop_remainder=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    for images in data.with_options(options).prefetch(2 if cores > 1 else 0):
        yield len(images)


def dali(root: pathlib.Path, cores: int, resolution: int) -> Iterator[int]:
    """Yield batch sizes of DALI's operators for the CPU, which decode only the crop."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=BATCH, num_threads=cores, device_id=None)
    def images():
        encoded, labels = fn.readers.file(file_root=str(root), random_shuffle=True)
        image = fn.decoders.image_random_crop(encoded, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0])
        image = fn.resize(image, size=[resolution, resolution], antialias=True)
        image = fn.flip(image, horizontal=fn.random.coin_flip())
        brightness, contrast, saturation = (fn.random.uniform(range=[0.7, 1.3]) for _ in range(3))
        return fn.color_twist(image, brightness=brightness, contrast=contrast, saturation=saturation), labels

    batches = images()
    batches.build()
    for _ in range(len(list(root.glob('*/*'))) // BATCH):
        batches.run()
        yield BATCH


def seconds_per_image(batches: Iterator[int], warm_up: int) -> float:
    """Return the CPU seconds an image takes, from batch `warm_up`, when workers have started, to the last."""
    times, sizes = [], []
    for size in batches:
        times.append(cpu_seconds(os.getpid()))
        sizes.append(size)
    return (times[-1] - times[warm_up - 1]) / sum(sizes[warm_up:])


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds that a process and those it has started, living or not, have used so far."""
    used = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    seconds = sum(map(int, used[11:15])) / os.sysconf('SC_CLK_TCK')
    for children in pathlib.Path(f'/proc/{process}/task').glob('*/children'):
        seconds += sum(cpu_seconds(int(child)) for child in children.read_text().split())
    return seconds


def make_folders(images: pathlib.Path, out: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Copy the images `COPIES` times into class folders, and prepare them as shards of short side 256."""
    files = sorted(path for path in images.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
    folder = out / 'original' / 'train'
    for copy in range(COPIES):
        (folder / f'class{copy}').mkdir(parents=True)
        for number, path in enumerate(files):
            shutil.copy(path, folder / f'class{copy}' / f'{number}.jpg')
    command = [sys.executable, '-m', 'fixres_jax.prepare', str(out / 'original'), str(out / 'prepared')]
    subprocess.run([*command, '--short-side', '256'], check=True, stdout=subprocess.DEVNULL)
    return folder, out / 'prepared' / 'train'


def contestants(
    original: pathlib.Path, prepared: pathlib.Path, cores: int, augment: str = ''
) -> dict[str, Callable[[int, int], Iterator[int]]]:
    """Return name -> function of (cores, resolution)."""
    found = {}
    try:
        import torchvision as _  # noqa: F401

        found[BASE] = lambda *job: torchvision(original, *job, augment)
    except ImportError:
        print('torchvision is not installed: no ratios to it')
    if augment:
        return found | {
            'files': lambda *job: fixres(original, *job, augment=augment),
            'records': lambda *job: fixres(prepared, *job, augment=augment),
        }
    try:
        import tensorflow as _  # noqa: F401

        found['tf.data decode-and-crop'] = lambda *job: tf_data(original, *job)
    except ImportError:
        print('TensorFlow is not installed: tf.data is left out')
    try:
        import nvidia.dali as _  # noqa: F401

        found['DALI, on the CPU'] = lambda *job: dali(original, *job)
    except ImportError:
        print('DALI is not installed: it is left out')
    found['files'] = lambda *job: fixres(original, *job)
    if cores > 1:
        found['files, processes'] = lambda *job: fixres(original, *job, processes=True)
    found['files, 3 copies of an image'] = lambda *job: fixres(original, *job, repeats=3)
    found['records'] = lambda *job: fixres(prepared, *job)
    found['records, 3 copies of an image'] = lambda *job: fixres(prepared, *job, repeats=3)
    return found


def measure(runs: dict[str, Callable], cores: int, resolution: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Print a table, images per second and core and the ratio to torchvision; return both, of every round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds_per_image(run(cores, resolution), cores + (cores > 1)))
    print(f'\nresolution {resolution}, cores {cores}: images per second and core, ratio to {BASE}')
    result = {}
    for name, seconds in times.items():
        rates = [1 / one for one in seconds]
        result[name] = {'rate': rates}
        shown = ''
        if BASE in times:
            ratios = np.divide(times[BASE], seconds)
            result[name]['ratio'] = ratios.tolist()
            shown = f'{np.median(ratios):6.2f}  ({ratios.min():.2f} to {ratios.max():.2f})'
        print(f'  {name:32s}{statistics.median(rates):8.0f}{shown}', flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', type=pathlib.Path)
    parser.add_argument('--resolutions', type=int, nargs='+', default=[128, 224])
    parser.add_argument('--cores', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--contestants', nargs='+', help='their names, as in the table; all if not given')
    parser.add_argument('--augment', default='', choices=['', *POLICIES], help='a policy that all have')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', type=pathlib.Path, help='where to write the figures of every round')
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        folders = make_folders(arguments.images, pathlib.Path(folder))
        for cores in arguments.cores:
            for resolution in arguments.resolutions:
                runs = contestants(*folders, cores, arguments.augment)
                runs = {name: runs[name] for name in arguments.contestants or runs if name in runs}
                figures[f'{cores} cores, {resolution}'] = measure(runs, cores, resolution, arguments.rounds)
                if arguments.json:
                    arguments.json.write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    main()
