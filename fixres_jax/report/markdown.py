"""report.md: the numbers, the curves and the cost, for a repository or a chat."""

from typing import Any

from etils import epath

from fixres_jax.core import tables
from fixres_jax.report import findings, plots, published
from fixres_jax.studies import STUDIES


def page(workdir: epath.Path, report: dict[str, Any]) -> str:
    """Return the content of `report.md`.

    Args:
      workdir: folder of the run, with plots/ and studies/.
      report: the content of report.json.
    """
    sentence = f'{findings.classes_sentence(report)}\n\n' if report['present'] else ''
    return f"""# {findings.title(report)}

{findings.verdict(report)}

{tables.markdown(findings.number_table(report))}

{sentence}Paired differences in top-1, in points, on the same {report['images']['test']:,} test images:

{tables.markdown(findings.difference_table(report))}

The test resolution was chosen on: {report['test_resolution_chosen_on']}.

{findings.adaptation_sentence(report)}

## Accuracy against test resolution

{_picture(workdir, 'accuracy', findings.curve_sentence(report))}{tables.markdown(findings.curve_table(report))}

{_costs(workdir, report)}{_published(report)}## Cost of this run

{_picture(workdir, 'training', 'Loss and top-1 against the step.')}{tables.markdown(findings.cost_table(report))}

`report.html` holds what each part of the adaptation was worth, and examples.

## How to run it again

```
{report['environment']['command']}
```

{findings.environment_sentence(report)}
The whole config is in `config.json`.
"""


def _costs(workdir: epath.Path, report: dict[str, Any]) -> str:
    """Return the section of accuracy against what it costs, where that was measured."""
    if not report['cost']:
        return ''
    pictures = ''.join(
        _picture(workdir, name, against.caption) for name, against in plots.AGAINST.items() if name != 'accuracy'
    )
    table = tables.markdown(STUDIES['cost'].table(report['cost']))
    return f'## Accuracy against cost\n\n{pictures}{table}\n\n'


def _published(report: dict[str, Any]) -> str:
    """Return the section of others' figures, where the config has some."""
    if not report['published']:
        return ''
    return f'## Published figures\n\n{published.sentence(report)}\n\n{tables.markdown(published.table(report))}\n\n'


def _picture(workdir: epath.Path, name: str, caption: str) -> str:
    if not (workdir / 'plots' / f'{name}.svg').exists():
        return ''
    return f'![{caption}](plots/{name}.svg)\n\n{caption}\n\n'
