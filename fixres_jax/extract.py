"""Write what a network says of every image, and score what was written.

    fixres extract adapted.safetensors PICTURES OUT       # a folder of images, or of class folders; needs no labels
    fixres extract adapted.safetensors cat.jpg dog.jpg OUT
    fixres extract score OUT                              # accuracy and calibration, where the images have labels
    fixres extract score OUT OTHER                        # and compared, of two networks on the same images

OUT gets softmax.npy and embedding.npy, float32, a row an image; names.txt, its names in that order; and labels.npy
where the images lie in folders that are named as the network's classes are. NETWORK is as `fixres adapt` takes it.
"""

import argparse
import sys
from collections.abc import Sequence

from fixres_jax.core import command, progress
from fixres_jax.core.errors import UsageError

SCORE = 'score'


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser('python -m fixres_jax.extract', describe=__doc__)
    add = parser.add_argument
    add('arguments', metavar='NETWORK IMAGES OUT', nargs='+', help='or: score DIR [DIR]')
    add('--resolution', type=command.pixels, metavar='PIXELS', help="pixels; default: the network's own")
    add('--flip', action='store_true', help='average with the mirror images')
    add('--batch-size', type=int, default=0, help='images at once; default: what suits the devices')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 for wrong input and 1 for damaged files."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    first, *rest = arguments.arguments
    if first == SCORE:
        _score(rest)
    elif len(rest) < 2:
        parser.error(f'expected NETWORK IMAGES OUT, or score DIR, found {" ".join(arguments.arguments)}')
    else:
        _extract(arguments, first, rest[:-1], rest[-1])


def _extract(arguments: argparse.Namespace, name: str, images: Sequence[str], out: str) -> None:
    folder = command.empty_folder(out)
    progress.show_log()
    from fixres_jax import library  # it imports jax, which help needs not
    from fixres_jax.machines import compilation

    net = library.named(name)
    how = {'resolution': arguments.resolution, 'flip': arguments.flip, 'batch_size': arguments.batch_size}
    with progress.Activity('extract'), compilation.told():
        told = net.extract(images[0] if len(images) == 1 else images, folder, **how)
    print(f'{out} holds what {name} says of {told["count"]:,} images at {told["resolution"]}.')
    if not told['labelled']:
        print('Their labels are unknown: there is no labels.npy, and no accuracy.')


def _describe(directory: str) -> str:
    from fixres_jax.evaluation import outputs, scores

    result = scores.score(*outputs.load(directory))
    top = ', '.join(
        f'top-{k} {result[f"top{k}"]:.2f} % [{low:.2f}, {high:.2f}]'
        for k in (1, 5)
        for low, high in [result[f'top{k}_interval']]
    )
    return (
        f'{directory}: {result["count"]} images, {top}, cross entropy {result["loss"]:.4f} nats, '
        f'calibration error (ECE) {result["ece"]:.2f} %'
    )


def _score(directories: Sequence[str]) -> None:
    if len(directories) not in (1, 2):
        raise UsageError(f'{len(directories)} folders were given; expected one or two.')
    for directory in directories:
        print(_describe(directory))
    if len(directories) == 2:
        from fixres_jax.evaluation import scores

        d = scores.compare(*directories)
        print(f'first minus second: {d["difference"]:+.2f} points [{d["low"]:+.2f}, {d["high"]:+.2f}], paired')


if __name__ == '__main__':
    sys.exit(main())
