"""Tables as cells of text, and the ways numbers are written in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # header, rows


def accuracy(row: Mapping[str, Any], suffix: str = '') -> str:
    """Write an accuracy with its interval, in percent.

    >>> accuracy({'top1': 80.0, 'low': 78.5, 'high': 81.25})
    '80.00 (78.50 to 81.25)'
    """
    return '{:.2f} ({:.2f} to {:.2f})'.format(*(row[f'{name}{suffix}'] for name in ('top1', 'low', 'high')))


def digits(value: float) -> str:
    """Write a number with three digits.

    >>> digits(1), digits(0.0104), digits(287.6)
    ('1.00', '0.0104', '288')
    """
    return f'{value:#.3g}'.rstrip('.')


def uneven(points: Iterable[Mapping[str, Any]]) -> bool:
    """Say whether the mean per class of a point is another than its top-1, by a tenth of a point or more.

    Where all classes are as large the two are one number, and where nearly so they say the same.

    >>> uneven([{'top1': 80.0, 'mean_per_class': 79.98}]), uneven([{'top1': 80.0, 'mean_per_class': 75.5}])
    (False, True)
    """
    return any(abs(point.get('mean_per_class', point['top1']) - point['top1']) >= 0.1 for point in points)


def difference(change: Mapping[str, float]) -> tuple[str, str]:
    """Write a paired difference and its interval, in points, as two cells.

    >>> difference({'difference': 1.5, 'low': -0.25, 'high': 3.0})
    ('+1.50', '-0.25 to +3.00')
    >>> difference({'difference': 0.0, 'low': 0.0, 'high': 0.0})
    ('none', 'the same network')
    """
    if change['low'] == change['high']:
        return 'none', 'the same network'
    return f'{change["difference"]:+.2f}', f'{change["low"]:+.2f} to {change["high"]:+.2f}'


def endings(paths: Sequence[str]) -> list[str]:
    """Return the ends of paths that tell them apart.

    >>> endings(['/runs/a/train', '/runs/b/train', '/runs/b/adapt'])
    ['a/train', 'b/train', 'b/adapt']
    >>> endings(['resnet50=/weights/resnet50.pth'])
    ['resnet50.pth']
    """
    parts = [path.rstrip('/').split('/') for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        ends = ['/'.join(some[-depth:]) for some in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)


def markdown(table: Table) -> str:
    """Write a table in Markdown."""
    header, rows = table
    return '\n'.join(f'| {" | ".join(row)} |' for row in (header, ('---',) * len(header), *rows))


def plain(table: Table) -> str:
    """Write a table as aligned lines for a terminal."""
    header, rows = table
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
