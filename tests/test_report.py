"""The report: what is resolution, what is refitting, what the images cannot tell, and how all of it is shown."""

import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from etils import epath

from fixres_jax.core import figures
from fixres_jax.report import environment, findings, html, markdown, plots, published, report

SIZES = (48, 64)


def change(difference, half=1.0):
    return {'difference': difference, 'low': difference - half, 'high': difference + half}


@pytest.fixture
def found():
    return {
        'train_resolution': 48,
        'test_resolution': 64,
        'test_resolution_chosen_on': 'held-out training images',
        'rejected': [],
        'config': {'adaptation': 'one_pass', 'adapt': {'solver': 'lbfgs'}},
        'larger_minus_train_resolution': change(-8.25),
        'adapted_minus_train_resolution': change(6.45),
        'control_minus_train_resolution': change(0.5),
        'adapted_minus_control': change(5.95),
    }


def test_the_verdict_tells_resolution_from_refitting(found):
    assert findings.verdict(found) == (
        'Adapted and tested at 64, the network gains 6.45 points of top-1 (95 % interval of the change +5.45 to +7.45) '
        'over its training size, 48. The larger size alone, without adaptation, loses 8.25 points of top-1 (95 % '
        'interval of the change -9.25 to -7.25). Refitting alone, adapted at 48, shows no detectable effect on these '
        'images: +0.50 points of top-1 (95 % interval of the change -0.50 to +1.50). The rest is resolution: between '
        'adapted networks, 64 over 48 gains 5.95 points of top-1 (95 % interval of the change +4.95 to +6.95).'
    )


def test_without_the_control_the_verdict_says_what_is_not_known(found):
    del found['control_minus_train_resolution'], found['adapted_minus_control']
    said = findings.verdict(found)
    assert said.endswith('How much of it is refitting was not measured (control=False).') and 'The rest' not in said


@pytest.mark.parametrize(('adaptation', 'said'), [('one_pass', 'New statistics'), ('finetune', 'Refitting')])
def test_an_adaptation_that_keeps_the_classifier_is_not_called_refitting(found, adaptation, said):
    found['config'] = {'adaptation': adaptation, 'adapt': {'solver': 'none'}}  # which is of one pass alone
    assert f'{said} alone, adapted at 48,' in findings.verdict(found)
    found['rejected'] = ['control']
    assert f'{said} alone, at 48, was rejected' in findings.verdict(found)


def test_a_training_size_that_was_kept_is_no_gain_of_resolution(found):
    found['test_resolution'] = 48
    said = findings.verdict(found)
    assert said.startswith('No larger resolution was better') and 'The rest' not in said and 'larger size' not in said


def made(chosen=64, num_classes=4, published=None, uneven=0.0, **kept_old):
    """Return a report of 60 test images; `adapt=True` or `control=True` where that adaptation was rejected."""
    right = {('before', 48): 30, ('before', 64): 33, ('after', 48): 28, ('after', 64): 39, ('control', 48): 31}
    if kept_old.get('adapt'):
        right |= {('after', size): right['before', size] for size in SIZES}
    keys = list(right)
    accuracies = {'top5': 99.0, 'low': 40.0, 'high': 60.0, 'loss': 1.0, 'count': 60, 'classes': num_classes - 1}
    points = [
        {'network': name, 'resolution': size, 'top1': 100 * right[name, size] / 60} | accuracies for name, size in keys
    ]
    for point in points:
        point['mean_per_class'] = point['top1'] - uneven
    both = [[min(right[a], right[b]) for b in keys] for a in keys]
    scores = {'count': 20, 'top1': 50.0, 'loss': 1.0}
    record = {
        'batch_norm': ['bn'], 'statistics_images': 9, 'images': 90, 'passes': 1.2, 'images_seen': 110, 'seconds': 2.0,
        'solver': 'lbfgs', 'chosen': 1e-3, 'chosen_on': 'held-out training images', 'before': scores, 'after': scores,
    }  # fmt: skip
    results = {
        'train': {'images': 90, 'images_seen': 900, 'seconds': 60.0},
        'sweep': {'test_resolution': chosen, 'chosen_on': 'held-out training images', 'seconds': 3.0},
        'adapt': record | {'kept_old': kept_old.get('adapt', False)},
        'control': record | {'kept_old': kept_old.get('control', False)},
        'evaluate': {'count': 60, 'points': points, 'both': both, 'seconds': 5.0},
        'studies': {'studies': ['cost'], 'seconds': 4.0},
    }
    rows = [{'resolution': size, 'gflop': size / 10, 'milliseconds': size / 100} for size in SIZES]
    cost = {'model': 'resnet18', 'devices': '1 x cpu', 'batch_size': 8, 'train_resolution': 48, 'rows': rows}
    where = {'command': 'run', 'date': '2026-01-01', 'devices': '1 x cpu', 'host': 'x', 'versions': {'jax': '1'}}
    return report.build(
        results,
        train_resolution=48,
        num_classes=num_classes,
        config={'model': {'name': 'resnet18'}, 'adaptation': 'one_pass', 'adapt': {'solver': 'lbfgs'}},
        environment=where,
        cost=cost,
        published=published,
    )


def test_published_figures_stand_beside_those_of_the_run_each_with_its_conditions(tmp_path):
    theirs = {'source': 'A <paper>', 'network': 'SENet-154', 'conditions': 'one centre crop', 'baseline': 94.0}
    value = made(published=theirs | {'adapted': 0.0})
    _, (other, own) = published.table(value)
    assert other == ('published', 'SENet-154', '94', 'not published', 'one centre crop')
    assert own[:4] == ('this run', 'resnet18', '50.00', '65.00') and 'trained at 48' in own[4] and '64' in own[4]
    for page, source in ((markdown.page, 'A <paper>'), (html.page, 'A &lt;paper&gt;')):
        text = page(epath.Path(tmp_path), value)
        assert f'were not repeated here: {source}.' in text and 'not published' in text and 'SENet-154' in text
        assert 'Published figures' not in page(epath.Path(tmp_path), made())


def test_a_rejected_adaptation_is_said_and_is_no_row_and_no_interval():
    value = made(adapt=True)
    assert findings.verdict(value).startswith('The adaptation was rejected')
    assert list(value['numbers']) == ['train_resolution', 'larger', 'adapted', 'adapted_at_train_resolution']
    assert value['adapted_minus_larger'] == {'difference': 0.0, 'low': 0.0, 'high': 0.0}
    assert [row[0] for row in findings.number_table(value)[1]] == [
        'tested at the training size',
        'larger, not adapted',
        'control: adapted at the training size',
    ]
    assert [row[0] for row in findings.difference_table(value)[1]] == [
        'larger resolution, not adapted',
        'adaptation, at the training size',
    ]
    assert 'rejected' in findings.networks_of_curve(value)['after']
    assert findings.curve_table(value)[0] == ('test resolution', 'not adapted, top-1 (%)')


def test_blended_statistics_are_said():
    value = made()
    assert 'from 9 training images, then the classifier' in findings.adaptation_sentence(value)
    value['adaptation']['prior_images'] = 1024
    expected = 'from 9 training images blended with the old ones, which count as 1,024, then the classifier'
    assert expected in findings.adaptation_sentence(value)


def test_a_rejected_control_leaves_all_of_the_gain_to_resolution():
    value = made(control=True)
    assert 'Refitting alone, at 48, was rejected' in findings.verdict(value)
    assert value['control_minus_train_resolution']['high'] == 0
    assert len(findings.number_table(value)[1]) == 3
    assert [row[0] for row in findings.difference_table(value)[1]][-1] == 'both together'


def test_an_adaptation_that_was_taken_has_four_numbers_and_five_differences():
    value = made()
    assert len(findings.number_table(value)[1]) == 4 and len(findings.difference_table(value)[1]) == 5
    assert value['adapted_minus_larger']['low'] < 10 < value['adapted_minus_larger']['high']


def test_a_kept_training_size_has_two_numbers():
    assert [row[0] for row in findings.number_table(made(chosen=48))[1]] == [
        'tested at the training size',
        'adapted at the training size',
    ]


@pytest.mark.parametrize('num_classes, there', [(10, False), (11, True)])
def test_top5_stands_where_there_are_more_than_ten_classes(num_classes, there, tmp_path):
    value = made(num_classes=num_classes)
    assert ('top-5 (%)' in findings.number_table(value)[0]) == there
    for page in (markdown.page(epath.Path(tmp_path), value), html.page(epath.Path(tmp_path), value)):
        assert ('top-5' in page) == there


@pytest.mark.parametrize('uneven', [0.0, 2.5])
def test_the_mean_per_class_stands_beside_top1_where_it_is_another(uneven, tmp_path):
    value = made(uneven=uneven)
    header, rows = findings.number_table(value)
    assert ('mean per class (%), 3 classes' in header) == ('47.50' in rows[0]) == bool(uneven)
    assert all(point['mean_per_class'] == point['top1'] - uneven for point in value['numbers'].values())
    for page, said in ((markdown.page, '| 47.50 |'), (html.page, 'mean per class 47.50 %, 3 classes')):
        assert (said in page(epath.Path(tmp_path), value)) == bool(uneven)
    assert ('mean per class' in findings.summary(value)) == bool(uneven)
    for point in value['numbers'].values():  # of an evaluation that is older
        del point['mean_per_class'], point['classes']
    assert 'mean per class' not in findings.summary(value)


def test_no_cell_of_a_table_is_empty():
    for value in (made(), made(adapt=True)):
        for header, rows in (findings.cost_table(value), findings.curve_table(value), findings.difference_table(value)):
            assert all(cell and len(row) == len(header) for row in (header, *rows) for cell in row)
    assert ('evaluate', '5 s', '300') in findings.cost_table(made())[1]  # 60 images at 5 points


def test_pages_show_accuracy_against_pixels_operations_and_time(tmp_path):
    workdir, value = epath.Path(tmp_path), made()
    plots.draw(workdir, value)
    page, text = html.page(workdir, value), markdown.page(workdir, value)
    for name in ('accuracy', 'accuracy_gflop', 'accuracy_milliseconds'):
        assert f'plots/{name}.svg' in text
        ElementTree.parse(workdir / 'plots' / f'{name}.svg')
    assert page.count('<svg') == 3
    assert 'GFLOP an image (resnet18, 2 per multiply-add)' in page and '± ' not in page and '+-' not in page + text
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), 'pictures of one page share names'


def test_every_colour_of_a_figure_has_a_counterpart_of_dark_mode(tmp_path):
    workdir = epath.Path(tmp_path)
    plots.draw(workdir, made())
    svg = (workdir / 'plots' / 'accuracy.svg').read_text()
    style, drawing = svg.split('</style>', 1)
    assert '@media (prefers-color-scheme: dark)' in style
    used = set(re.findall(r'(?:fill|stroke): #[0-9a-f]{6}', drawing))
    assert {f'fill: {figures.PAPER}', f'stroke: {figures.BEFORE}', f'stroke: {figures.INK}'} <= used
    for colour in used:
        (dark,) = re.findall(rf'\[style\*="{colour}"\] {{ \w+: #(\w+) !important', style)
        light = sum(int(dark[i : i + 2], 16) for i in (0, 2, 4)) / 3
        assert light < 32 if figures.PAPER in colour else light > 90, (colour, dark)
    first = svg
    plots.draw(workdir, made())
    assert (workdir / 'plots' / 'accuracy.svg').read_text() == first


def test_validations_stand_beside_the_training_batches():
    lines = [{'step': step, 'loss': 1.0, 'top1': 0.5} for step in (1, 2, 3)]
    alone = plots.training_curves({'train': lines, 'finetune': []})
    assert [len(axes.get_lines()) for axes in alone.axes] == [1, 1]
    lines[2] |= {'validation_loss': 2.0, 'validation_top1': 0.25}
    loss, top1 = plots.training_curves({'train': lines}).axes
    assert [list(line.get_ydata()) for line in top1.get_lines()] == [[50.0, 50.0, 50.0], [25.0]]
    assert list(loss.get_lines()[1].get_xdata()) == [3]


def test_curves_that_coincide_are_both_seen():
    value = made(adapt=True)
    figure = plots.accuracy(
        value['curve'], plots.AGAINST['accuracy'], findings.networks_of_curve(value), {'train': 48, 'test': 64}
    )
    before, after = figure.axes[0].get_lines()[:2]
    assert list(before.get_ydata()) == list(after.get_ydata())
    assert before.get_linewidth() > after.get_linewidth() and before.get_linestyle() != after.get_linestyle()


@pytest.mark.parametrize(
    'program, start',
    [
        ('/x/fixres_jax/main.py', 'python -m fixres_jax.main'),
        ('/x/fixres_jax/__main__.py', 'python -m fixres_jax'),
        ('/x/bin/fixres', 'fixres'),
        ('/x/bin/pytest', 'python -m fixres_jax.main'),
    ],
)
def test_the_command_can_be_given_to_a_shell(monkeypatch, program, start):
    arguments = ['--config.test.resolutions=(32,48,64)', "--workdir=a folder/it's"]
    monkeypatch.setattr(sys, 'argv', [program, *arguments])
    command = environment.describe()['command']
    assert shlex.split(command) == [*start.split(), *arguments] and command.startswith(start)
    assert "'--config.test.resolutions=(32,48,64)'" in command
