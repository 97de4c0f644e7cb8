"""What an evaluation of several networks says, as a table that prints and goes into a file."""

import csv
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from fixres_jax.core import files, tables
from fixres_jax.core.errors import UsageError
from fixres_jax.evaluation import intervals

# The columns of timm's validate.py, in its order; then ours. Accuracies are in percent, param_count is in millions.
TIMM = ('model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation')
OURS = ('low', 'high', 'mean_per_class', 'loss', 'count', 'difference', 'difference_low', 'difference_high')
AMONG = 'top1_among_present'


@dataclasses.dataclass(frozen=True)
class Table:
    """Hold what each network got right at each resolution.

    Attributes:
      rows: a dict each, in order: model, img_size (pixels), crop_pct (crop over resized side), interpolation, top1 and
        top5 (percent), low and high (top1's 95 % interval), mean_per_class (percent) over `classes` that have images,
        loss (nats), count (images), param_count (millions); and in all rows but the first, difference with
        difference_low and difference_high: top1 minus that of the first row, in points, with its paired 95 % interval.
      both: `both[i][j]` counts the images that rows i and j both got right.
      note: what one must know of the labels.
    """

    rows: tuple[dict[str, Any], ...]
    both: Sequence[Sequence[int]]
    note: str = ''

    def difference(self, first: int, second: int) -> dict[str, float]:
        """Return top1 of a row minus that of another, by their numbers: {'difference', 'low', 'high'}, in points."""
        pairs = self.both
        only_first, only_second = (pairs[i][i] - pairs[first][second] for i in (first, second))
        return intervals.paired(only_first, only_second, self.rows[0]['count'])

    def to_csv(self, path: epath.PathLike) -> None:
        """Write the rows as CSV: timm's columns first, under its names, then the others."""
        extra = (AMONG,) if AMONG in self.rows[0] else ()
        out = io.StringIO()
        writer = csv.DictWriter(out, (*TIMM, *OURS, *extra), extrasaction='ignore', lineterminator='\n', restval='')
        writer.writeheader()
        for row in self.rows:
            writer.writerow(
                {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            )
        files.write(files.reachable(path), out.getvalue())

    def cells(self) -> tables.Table:
        """Return the table as text."""
        ten = self.rows[0]['num_classes'] > 10
        sided, uneven = AMONG in self.rows[0], tables.uneven(self.rows)
        header = ('model', 'size', 'crop', 'top-1 % (95 % interval)', *(('mean per class %',) if uneven else ()))
        header += ('top-5 %',) if ten else ()
        header += (('among present %',) if sided else ()) + ('against the first (paired interval)',)
        lines = []
        for row in self.rows:
            line = (row['model'], str(row['img_size']), f'{row["crop_pct"]:.3f}', tables.accuracy(row))
            line += ((f'{row["mean_per_class"]:.2f}',) if uneven else ()) + ((f'{row["top5"]:.2f}',) if ten else ())
            line += (f'{row[AMONG]:.2f}',) if sided else ()
            change = ''
            if 'difference' in row:
                low, high = row['difference_low'], row['difference_high']
                change = '{} ({})'.format(
                    *tables.difference({'difference': row['difference'], 'low': low, 'high': high})
                )
            lines.append((*line, change))
        single = len(lines) == 1
        return header[: -1 if single else None], [line[: -1 if single else None] for line in lines]

    def __str__(self) -> str:
        last = f'{self.rows[0]["count"]:,} images.{" " if self.note else ""}{self.note}'
        return f'{tables.plain(self.cells())}\n{last}'

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, lines = self.cells()

        def row(cells: Sequence[str], tag: str) -> str:
            return f'<tr>{"".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)}</tr>'

        body = ''.join(row(line, 'td') for line in lines)
        return f'<table><thead>{row(header, "th")}</thead><tbody>{body}</tbody></table>'


def make(result: Mapping[str, Any], about: Sequence[Mapping[str, Any]], note: str = '') -> Table:
    """Make a table of what `evaluate.evaluate` returned.

    Args:
      result: of it.
      about: of each point: model, img_size, crop_pct, interpolation, param_count, num_classes.
      note: see `Table`.
    """
    if not about:
        raise UsageError('Nothing to evaluate: give at least one network and one resolution.')
    kept = ('top1', 'top5', 'low', 'high', 'mean_per_class', 'classes', 'loss', 'count', AMONG)
    rows = []
    for known, point in zip(about, result['points'], strict=True):
        row = dict(known) | {name: point[name] for name in kept if name in point}
        rows.append(row | {'top1_err': 100 - row['top1'], 'top5_err': 100 - row['top5']})
    bare = Table(tuple(rows), result['both'], note)
    for number, row in enumerate(rows[1:], 1):
        change = bare.difference(number, 0)
        row |= {'difference': change['difference'], 'difference_low': change['low'], 'difference_high': change['high']}
    return bare
