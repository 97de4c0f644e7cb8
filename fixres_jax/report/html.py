"""report.html: one file with its pictures inside, that needs no network."""

import html
import re
from typing import Any

from etils import epath

from fixres_jax import studies
from fixres_jax.core.figures import DARK_INK, DARK_PAPER, INK, PAPER
from fixres_jax.core.tables import Table
from fixres_jax.report import findings, plots, published
from fixres_jax.studies import STUDIES

STYLE = f"""
:root {{ color-scheme: light dark; --ink: {INK}; --paper: {PAPER}; --line: #8884; --soft: #8882; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: {DARK_INK}; --paper: {DARK_PAPER}; }} }}
"""
STYLE += """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; } figcaption { font-size: 0.9rem; opacity: 0.8; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font-family: inherit !important; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); column-gap: 1.5rem; }
.wide { overflow-x: auto; }
.wide svg { max-width: 44rem; min-width: 36rem; }
.hint { display: none; font-size: 0.85rem; opacity: 0.8; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; }
td + td { white-space: nowrap; }
@media (max-width: 42rem) { .hint { display: block; } table { font-size: 0.85rem; } th, td { padding: 0.3rem 0.4rem; } }
pre { background: var(--soft); padding: 0.7rem; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.7rem; margin: 1rem 0; }
.numbers div { background: var(--soft); border-radius: 6px; padding: 0.7rem 1rem; }
.numbers b { display: block; font-size: 1.7rem; line-height: 1.3; }
.numbers small { opacity: 0.8; }
"""
PHONE = 36  # letters of a table that fit there beside the first column, which wraps; padding is worth two a column


def page(workdir: epath.Path, report: dict[str, Any]) -> str:
    """Return the content of `report.html`.

    Args:
      workdir: folder of the run, with plots/ and studies/.
      report: the content of report.json.
    """
    title, environment = findings.title(report), report['environment']
    sections = [
        f'<h1>{_text(title)}</h1><p>{_text(findings.verdict(report))}</p>',
        _numbers(report),
        f'<p>{_text(findings.classes_sentence(report))}</p>' if report['present'] else '',
        _table(findings.difference_table(report)),
        f'<p>{_text("The test resolution was chosen on: " + report["test_resolution_chosen_on"] + ".")} '
        f'{_text(findings.adaptation_sentence(report))}</p>',
        '<h2>Accuracy against test resolution</h2>',
        _picture(workdir, 'accuracy', findings.curve_sentence(report)),
        _table(findings.curve_table(report)),
        *_costs(workdir, report),
        *_published(report),
        *_studies(workdir),
        *_section(workdir, 'Training', 'training', 'Loss and top-1 against the step.'),
        '<h2>Cost of this run</h2>',
        _table(findings.cost_table(report)),
        '<h2>How to run it again</h2>',
        f'<pre>{_text(environment["command"])}</pre>',
        f'<p>{_text(findings.environment_sentence(report))}</p>',
        f'<details><summary>The whole config</summary><pre>{_text(_lines(report["config"]))}</pre></details>',
    ]
    body = '\n'.join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body>\n{body}\n</body></html>\n'
    )


def _costs(workdir: epath.Path, report: dict[str, Any]) -> list[str]:
    """Return the section of accuracy against what it costs, side by side where there is room."""
    if not report['cost']:
        return []
    pictures = [
        _picture(workdir, name, against.caption) for name, against in plots.AGAINST.items() if name != 'accuracy'
    ]
    return [
        '<h2>Accuracy against cost</h2>',
        f'<div class="pair">{"".join(pictures)}</div>',
        _table(STUDIES['cost'].table(report['cost'])),
    ]


def _published(report: dict[str, Any]) -> list[str]:
    """Return the section of others' figures, where the config has some."""
    if not report['published']:
        return []
    sentence = f'<p>{_text(published.sentence(report))}</p>'
    return ['<h2>Published figures</h2>', sentence, _table(published.table(report))]


def _studies(workdir: epath.Path) -> list[str]:
    """Return the sections of the studies that the workdir holds: figures, and below the first one the table."""
    parts = []
    for name, study in STUDIES.items():
        numbers = studies.read(workdir, name)
        if numbers is None or name == 'cost':  # which stands beside the accuracy
            continue
        table = _table(study.table(numbers)) if study.table else ''
        for file, picture in study.pictures.items():
            parts += _section(workdir, picture.title, file, picture.says(numbers), wide=picture.wide)
            parts, table = [*parts, table], ''
    return parts


def _section(workdir: epath.Path, title: str, name: str, caption: str, wide: bool = False) -> list[str]:
    picture = _picture(workdir, name, caption, wide)
    return [f'<h2>{title}</h2>', picture] if picture else []


def _numbers(report: dict[str, Any]) -> str:
    top5, classes = findings.says_top5(report), findings.classes_of_mean(report)
    boxes = [
        f'<div>{_text(label)}, at {point["resolution"]}<b>{point["top1"]:.2f} %</b>'
        f'<small>95 % interval {point["low"]:.2f} to {point["high"]:.2f}<br>'
        f'{"mean per class {:.2f} %, {:,} classes<br>".format(point["mean_per_class"], classes) if classes else ""}'
        f'{"top-5 {:.2f} %; ".format(point["top5"]) if top5 else ""}{point["count"]:,} images</small></div>'
        for label, point in findings.numbers(report).items()
    ]
    return f'<div class="numbers">{"".join(boxes)}</div>'


def _table(table: Table) -> str:
    """Return a table; one that is wider than a phone says there that it scrolls."""
    header, rows = table
    widths = [max(len(row[i]) for row in rows or [header]) for i in range(1, len(header))]
    lines = [''.join(f'<th>{_text(cell)}</th>' for cell in header)]
    lines += [''.join(f'<td>{_text(cell)}</td>' for cell in row) for row in rows]
    inner = f'<table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'
    narrow = sum(widths) + 2 * len(header) <= PHONE
    return f'<div class="wide">{inner}</div>' if narrow else _scrolling(inner, 'table')


def _scrolling(inner: str, what: str) -> str:
    return (
        f'<p class="hint">This {what} scrolls sideways →</p>'
        f'<div class="wide" tabindex="0" role="region" aria-label="A {what} that scrolls">{inner}</div>'
    )


def _picture(workdir: epath.Path, name: str, caption: str, wide: bool = False) -> str:
    """Return a figure; a wide one scrolls on a phone, and says so."""
    path = workdir / 'plots' / f'{name}.svg'
    if not path.exists():
        return ''
    svg = re.sub(r'^.*?<svg', f'<svg role="img" aria-label="{_text(caption)}"', path.read_text(), flags=re.DOTALL)
    inner = _scrolling(svg, 'picture') if wide else svg
    return f'<figure>{inner}<figcaption>{_text(caption)}</figcaption></figure>'


def _text(text: str) -> str:
    return html.escape(text)


def _lines(config: dict[str, Any], prefix: str = '') -> str:
    return '\n'.join(
        _lines(value, f'{prefix}{name}.') if isinstance(value, dict) else f'{prefix}{name} = {value!r}'
        for name, value in config.items()
    )
