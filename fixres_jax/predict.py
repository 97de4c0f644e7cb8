"""Say what is on pictures: the most likely classes and their probabilities.

    fixres predict adapted.safetensors cat.jpg
    fixres predict resnet50=resnet50.pth PICTURES --top 1 --csv predictions.csv

NETWORK is ARCHITECTURE=FILE for torch weights, a workdir, a folder of `fixres convert`, a file of `fixres adapt`, or
hf:timm/NAME. IMAGES are files, or one folder of them. No labels are needed.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence

from fixres_jax.core import command, files
from fixres_jax.core.errors import UsageError


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser('python -m fixres_jax.predict', describe=__doc__)
    add = parser.add_argument
    add('network', metavar='NETWORK')
    add('images', metavar='IMAGES', nargs='+')
    add('--top', type=int, default=5, help='classes to name; default: 5')
    add('--resolution', type=command.pixels, metavar='PIXELS', help="pixels; default: the network's own")
    add('--csv', help='file to write instead of printing: image, class, probability')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top < 1:
        raise UsageError(f'--top={arguments.top}: expected 1 or more, such as 5.')
    from fixres_jax import library
    from fixres_jax.data import given

    net = library.named(arguments.network)
    source, _ = given.images(arguments.images[0] if len(arguments.images) == 1 else arguments.images)
    found = net.outputs(source, resolution=arguments.resolution)['softmax']
    said = [(source.name(number), net.likely(softmax, arguments.top)) for number, softmax in enumerate(found)]
    if arguments.csv:
        out = io.StringIO()
        rows = ((image, *one) for image, likely in said for one in likely)
        csv.writer(out, lineterminator='\n').writerows([('image', 'class', 'probability'), *rows])
        files.write(files.reachable(arguments.csv), out.getvalue())
        print(f'{arguments.csv} holds the classes of {len(source):,} images.')
        return
    for image, likely in said:
        print(image)
        for name, probability in likely:
            print(f'  {100 * probability:5.1f} %  {name}')


if __name__ == '__main__':
    sys.exit(main())
