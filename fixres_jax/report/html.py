"""report.html: one file with its pictures inside, that needs no network."""

import base64
import html
from typing import Any

from etils import epath

from fixres_jax import studies
from fixres_jax.report import report as tables
from fixres_jax.studies import STUDIES

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; overflow-x: auto; } figcaption { font-size: 0.9rem; opacity: 0.8; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
img.panels { min-width: 32rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; }
td + td { white-space: nowrap; }
pre { background: var(--soft); padding: 0.7rem; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.7rem; margin: 1rem 0; }
.numbers div { background: var(--soft); border-radius: 6px; padding: 0.7rem 1rem; }
.numbers b { display: block; font-size: 1.7rem; line-height: 1.3; }
.numbers small { opacity: 0.8; }
"""


def page(workdir: epath.Path, report: dict[str, Any]) -> str:
    """Return the content of `report.html`.

    Args:
      workdir: folder of the run, with plots/ and studies/.
      report: the content of report.json.
    """
    name, environment = report['config']['model']['name'], report['environment']
    title = f'{name}, trained at {report["train_resolution"]}, tested at {report["test_resolution"]}'
    versions = ', '.join(f'{package} {version}' for package, version in environment['versions'].items())
    commit = f'commit {environment["commit"]}; ' if environment['commit'] else ''
    sections = [
        f'<h1>{_text(title)}</h1><p>{_text(tables.verdict(report))}</p>',
        _numbers(report),
        f'<p>{_text(tables.classes_sentence(report))}</p>' if report['present'] else '',
        _table(*tables.difference_table(report)),
        f'<p>{_text("The test resolution was chosen on: " + report["test_resolution_chosen_on"] + ".")} '
        f'{_text(tables.adaptation_sentence(report))}</p>',
        '<h2>Accuracy against test resolution</h2>',
        _picture(workdir, 'accuracy', 'Top-1 on the test images. What was adapted at each size is one network a size.'),
        _table(*tables.curve_table(report)),
        *_studies(workdir),
        *_section(workdir, 'Training', 'training', 'Loss and top-1 of training batches.', wide=True),
        '<h2>Cost</h2>',
        _table(*tables.cost_table(report)),
        '<h2>How to run it again</h2>',
        f'<pre>{_text(environment["command"])}</pre>',
        f'<p>{_text(commit + environment["date"])}; {_text(environment["devices"] + ", " + environment["host"])}; '
        f'{_text(versions)}.</p>',
        f'<details><summary>The whole config</summary><pre>{_text(_lines(report["config"]))}</pre></details>',
    ]
    body = '\n'.join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body>\n{body}\n</body></html>\n'
    )


def _studies(workdir: epath.Path) -> list[str]:
    """Return the sections of the studies that the workdir holds: figures, and below the first one the table."""
    parts = []
    for name, study in STUDIES.items():
        numbers = studies.read(workdir, name)
        if numbers is None:
            continue
        table = _table(*study.table(numbers)) if study.table else ''
        for file, picture in study.pictures.items():
            parts += _section(workdir, picture.title, file, picture.caption, wide=picture.panels)
            parts, table = [*parts, table], ''
    return parts


def _section(workdir: epath.Path, title: str, name: str, caption: str, wide: bool = False) -> list[str]:
    picture = _picture(workdir, name, caption, wide)
    return [f'<h2>{title}</h2>', picture] if picture else []


def _numbers(report: dict[str, Any]) -> str:
    boxes = [
        f'<div>{_text(tables.NUMBERS[name])}, at {point["resolution"]}<b>{point["top1"]:.2f} %</b>'
        f'<small>top-1; 95 % interval {point["low"]:.2f} to {point["high"]:.2f}<br>'
        f'top-5 {point["top5"]:.2f} %; {point["count"]:,} images</small></div>'
        for name, point in report['numbers'].items()
    ]
    return f'<div class="numbers">{"".join(boxes)}</div>'


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [''.join(f'<th>{_text(cell)}</th>' for cell in header)]
    lines += [''.join(f'<td>{_text(cell)}</td>' for cell in row) for row in rows]
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _picture(workdir: epath.Path, name: str, caption: str, wide: bool = False) -> str:
    """Return a figure; a wide one, of panels side by side, scrolls on a phone."""
    path = workdir / 'plots' / f'{name}.png'
    if not path.exists():
        return ''
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img class="{"panels" if wide else ""}" alt="{_text(caption)}" '
        f'src="data:image/png;base64,{data}">'
        f'<figcaption>{_text(caption)}</figcaption></figure>'
    )


def _text(text: str) -> str:
    return html.escape(text)


def _lines(config: dict[str, Any], prefix: str = '') -> str:
    return '\n'.join(
        _lines(value, f'{prefix}{name}.') if isinstance(value, dict) else f'{prefix}{name} = {value!r}'
        for name, value in config.items()
    )
