"""Score what `--config.task=extract` has written: `python -m fixres_jax.extract score DIR [DIR]`.

With one folder its softmax is scored; two folders of the same images are compared too.
"""

import sys
from collections.abc import Sequence

from fixres_jax.core import command
from fixres_jax.core.errors import UsageError
from fixres_jax.evaluation import outputs, scores


def _describe(directory: str) -> str:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 for wrong input and 1 for damaged files."""
    parser = command.Parser(prog='python -m fixres_jax.extract', description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=['score'])
    parser.add_argument('directories', nargs='+', metavar='DIR', help='written by --config.task=extract; one or two')
    return command.run(lambda: _score(parser.parse_args(argv).directories))


def _score(directories: Sequence[str]) -> None:
    if len(directories) > 2:
        raise UsageError(f'{len(directories)} folders were given; expected one or two.')
    for directory in directories:
        print(_describe(directory))
    if len(directories) == 2:
        d = scores.compare(*directories)
        print(f'first minus second: {d["difference"]:+.2f} points [{d["low"]:+.2f}, {d["high"]:+.2f}], paired')


if __name__ == '__main__':
    sys.exit(main())
