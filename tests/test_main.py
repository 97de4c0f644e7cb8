"""The program as its users start it: a process of its own for every task, and one line for every wrong input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from ml_collections import ConfigDict

from conftest import QUICK_TO_COMPILE
from fixres_jax.report import findings
from fixres_jax.runs import settings
from fixres_jax.runs.run import open_run
from fixres_jax.weights import checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    '--config.model.width=8',
    '--config.train.epochs=2',
    '--config.train.batch_size=16',
    '--config.train.warmup_epochs=0',
    '--config.model.bn_group_size=16',
    '--config.train.resolution=32',
    '--config.test.resolutions=(32, 48)',
    '--config.data.held_out_fraction=0.25',
    '--config.finetune.epochs=1',
    '--config.finetune.batch_size=16',
    '--config.log_every_steps=1',
    '--config.checkpoint_every_steps=2',
    '--config.test.batch_size=8',  # one program for the images of each part
    '--config.compilation_cache=',  # that of all tests
)
ENVIRONMENT = os.environ | {'XLA_FLAGS': f'{QUICK_TO_COMPILE} --xla_force_host_platform_device_count=2'}


def main(workdir, *arguments, config='configs/quickstart.py', expect=0):
    command = [sys.executable, '-m', 'fixres_jax.main', f'--config={config}', f'--workdir={workdir}', *arguments]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == expect, done.stderr
    if expect:
        assert 'Traceback' not in done.stderr, done.stderr
    return done.stderr


@pytest.fixture(scope='module')
def finished(tmp_path_factory, tiny_folder):
    """The workdir of a whole recipe on a tiny folder, and what the program printed."""
    workdir = tmp_path_factory.mktemp('recipe')
    return workdir, main(workdir, f'--config.data.source={tiny_folder}', *SMALL)


def test_the_recipe_ends_with_a_report_of_four_numbers(finished):
    workdir, printed = finished
    report = json.loads((workdir / 'report.json').read_text())
    assert report['train_resolution'] == 32 and report['test_resolution'] in (32, 48)
    assert list(report['numbers']) == ['train_resolution', 'larger', 'adapted', 'adapted_at_train_resolution']
    for number in report['numbers'].values():
        assert number['count'] == 24 and number['low'] <= number['top1'] <= number['high'] <= 100
        assert 0 <= number['top1'] <= number['top5'] <= 100
    change = report['adapted_minus_larger']
    assert change['difference'] == pytest.approx(
        report['numbers']['adapted']['top1'] - report['numbers']['larger']['top1']
    )
    assert change['low'] < change['high'] or report['rejected']
    together = report['control_minus_train_resolution']['difference'] + report['adapted_minus_control']['difference']
    assert together == pytest.approx(report['adapted_minus_train_resolution']['difference'])
    assert [row['resolution'] for row in report['curve']] == [32, 48]
    assert all({'top1_before', 'top1_after'} <= row.keys() for row in report['curve'])
    assert report['config']['model']['width'] == 8
    assert {'train', 'sweep', 'evaluate'} <= report['seconds'].keys()
    assert all(label in printed for label in findings.numbers(report)) and len(findings.numbers(report)) >= 2
    for name in ('report.md', 'plots/accuracy.svg', 'plots/training.svg', 'train/metrics.jsonl', 'train/fixres.json'):
        assert (workdir / name).stat().st_size > 0


def test_the_resolution_is_chosen_on_images_that_are_neither_trained_on_nor_tested_on(finished, tiny_folder):
    workdir, _ = finished
    report = json.loads((workdir / 'report.json').read_text())
    sweep = json.loads((workdir / 'sweep.json').read_text())
    counts = {part: found['count'] for part, found in json.loads((workdir / 'run.json').read_text())['images'].items()}
    assert sweep['count'] == counts['held-out'] > 0 and counts['held-out'] + counts['training'] == 48
    assert report['images'] == {'train': counts['training'], 'test': counts['test']} and counts['test'] == 24
    config = ConfigDict(json.loads((workdir / 'config.json').read_text()), convert_dict=True)
    made = open_run(settings.read(config), epath.Path(workdir)).images
    parts = [{part.name(i) for i in range(len(part))} for part in (made.train, made.held_out, made.test)]
    assert [len(part) for part in parts] == [counts[name] for name in ('training', 'held-out', 'test')]
    assert set.union(*parts) == {str(path) for path in tiny_folder.rglob('*.jpg')}  # 72 files: no two parts share one


@pytest.mark.slow
def test_a_recipe_with_more_classes_than_the_data_names_ends_with_its_report(tiny_folder, tmp_path):
    options = (*SMALL, '--config.model.num_classes=30', '--config.train.lr=0', '--config.train.epochs=1')
    main(tmp_path, f'--config.data.source={tiny_folder}', *options)
    examples = json.loads((tmp_path / 'studies' / 'ablation.json').read_text())['examples']
    assert any(example['before'].startswith('class ') for example in examples['gained'])
    assert (tmp_path / 'report.html').exists()


def test_started_again_it_skips_what_is_done_and_makes_the_report_anew(finished, tiny_folder):
    workdir, _ = finished
    before = json.loads((workdir / 'report.json').read_text())
    (workdir / 'report.md').unlink()
    printed = main(workdir, f'--config.data.source={tiny_folder}', *SMALL)
    assert printed.count('is done') == 6
    assert (workdir / 'report.md').exists()
    assert json.loads((workdir / 'report.json').read_text())['numbers'] == before['numbers']


def test_another_config_in_the_same_workdir_is_refused(finished, tiny_folder):
    workdir, _ = finished
    printed = main(workdir, f'--config.data.source={tiny_folder}', *SMALL, '--config.train.lr=0.3', expect=2)
    assert 'train.lr was 0.1, now 0.3' in printed
    main(workdir, f'--config.data.source={tiny_folder}', *SMALL, '--config.data.threads=1')  # may differ


def test_tasks_of_one_phase(finished, tiny_folder, tmp_path):
    workdir, _ = finished
    start = (f'--config.data.source={tiny_folder}', *SMALL, f'--config.init_from={workdir / "train"}')
    printed = main(tmp_path / 'evaluate', *start, '--config.task=evaluate')
    report = json.loads((workdir / 'report.json').read_text())
    result = json.loads((tmp_path / 'evaluate' / 'evaluate.json').read_text())
    assert [point['top1'] for point in result['points']] == [row['top1_before'] for row in report['curve']]
    assert 'top-1' in printed
    main(tmp_path / 'finetune', *start, '--config.task=finetune', '--config.test.resolution=48')
    assert checkpoint.load_metadata(tmp_path / 'finetune')['test_resolution'] == 48
    printed = main(tmp_path / 'adapt', *start, '--config.task=adapt', '--config.test.resolution=48')
    held_out = json.loads((workdir / 'sweep.json').read_text())['count']
    assert f' on {held_out} held-out images' in printed and 'may have seen' not in printed
    assert checkpoint.load_metadata(tmp_path / 'adapt')['test_resolution'] == 48


def test_training_alone_keeps_its_programs_where_the_config_says(tiny_folder, tmp_path):
    options = (*SMALL, '--config.task=train', '--config.train.epochs=1', '--config.compilation_cache=programs')
    main(tmp_path, f'--config.data.source={tiny_folder}', *options)
    assert checkpoint.load_metadata(tmp_path)['num_classes'] == 4
    assert any('step' in path.name for path in (tmp_path / 'programs').iterdir())


def test_extraction_of_a_run_is_scored_as_its_report(finished, tiny_folder, tmp_path):
    workdir, _ = finished
    options = (f'--config.data.source={tiny_folder}', *SMALL, f'--config.init_from={workdir}', '--config.task=extract')
    main(tmp_path, *options)
    report = json.loads((workdir / 'report.json').read_text())
    command = [sys.executable, '-m', 'fixres_jax.extract', 'score', str(tmp_path / 'extracted')]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True)
    assert f'24 images, top-1 {report["numbers"]["adapted"]["top1"]:.2f} %' in done.stdout


def test_an_adapted_network_goes_to_torch_and_comes_back_without_being_told_anything(finished, tiny_folder, tmp_path):
    workdir, _ = finished
    convert = [sys.executable, '-m', 'fixres_jax.convert']
    for arguments in (
        ['--to-torch', workdir, tmp_path / 'out.safetensors'],
        ['resnet18', tmp_path / 'out.safetensors', tmp_path / 'back'],
    ):
        subprocess.run([*convert, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=120, check=True)
    options = (f'--config.init_from={tmp_path / "back"}', '--config.task=evaluate', '--config.test.batch_size=16')
    main(tmp_path / 'w', f'--config.data.source={tiny_folder}', *options, config='configs/base.py')
    report = json.loads((workdir / 'report.json').read_text())
    result = json.loads((tmp_path / 'w' / 'evaluate.json').read_text())
    (point,) = (point for point in result['points'] if point['resolution'] == report['test_resolution'])
    assert point['top1'] == report['numbers']['adapted']['top1']


def test_studies_of_a_run(finished, tiny_folder, tmp_path):
    workdir, _ = finished
    report = json.loads((workdir / 'report.json').read_text())
    study = (f'--config.data.source={tiny_folder}', *SMALL, '--config.task=analyze')
    main(tmp_path / 'ablation', *study, '--config.study=ablation', f'--config.init_from={workdir}')
    rows = json.loads((tmp_path / 'ablation' / 'studies' / 'ablation.json').read_text())['rows']
    top1 = {row['part']: row['top1'] for row in rows}
    assert len(top1) == 10
    assert top1['nothing'] == report['numbers']['larger']['top1']
    assert top1['statistics and classifier'] == report['numbers']['adapted']['top1']
    main(tmp_path / 'grid', *study, '--config.study=grid', f'--config.analyze.runs={(str(workdir),)}')
    rows = json.loads((tmp_path / 'grid' / 'studies' / 'grid.json').read_text())['rows']
    assert [row['train_resolution'] for row in rows] == [32]
    assert {path.name for path in (tmp_path / 'grid' / 'plots').iterdir()} == {'grid.svg', 'frontier.svg'}


def test_report_html_stands_alone(finished):
    workdir, _ = finished
    page = (workdir / 'report.html').read_text()
    report = json.loads((workdir / 'report.json').read_text())
    for figure in (
        'accuracy',
        'accuracy_gflop',
        'accuracy_milliseconds',
        'training',
        'ablation',
        'activations',
        'regions',
    ):
        assert (workdir / 'plots' / f'{figure}.svg').exists()
    assert page.count('<svg ') == page.count('</svg>') >= 7
    links = re.findall(r'(?:src|href)="([^"]*)', page)
    assert all(link.startswith(('#', 'data:')) for link in links) and '<script' not in page and '<link' not in page
    for point in findings.numbers(report).values():
        assert f'<b>{point["top1"]:.2f} %</b>' in page
    assert report['environment']['command'].split()[0] in page and 'train.lr = 0.1' in page


@pytest.mark.slow
def test_a_network_that_comes_trained_goes_through_the_recipe(finished, tiny_folder, tmp_path):
    workdir, _ = finished
    options = (*SMALL, f'--config.init_from={workdir / "train"}', '--config.train.epochs=0')
    main(tmp_path, f'--config.data.source={tiny_folder}', *options)
    ours, theirs = (json.loads((folder / 'report.json').read_text()) for folder in (tmp_path, workdir))
    assert ours['numbers']['train_resolution'] == theirs['numbers']['train_resolution']


def test_another_number_of_classes_is_refused_unless_the_classifier_starts_afresh(finished, tiny_folder, tmp_path):
    workdir, _ = finished
    options = (*SMALL, f'--config.init_from={workdir / "train"}', '--config.model.num_classes=7', '--config.task=train')
    printed = main(tmp_path / 'a', f'--config.data.source={tiny_folder}', *options, expect=2)
    assert 'has 4 classes' in printed and 'reset_head=True' in printed
    printed = main(tmp_path / 'b', f'--config.data.source={tiny_folder}', *options, '--config.reset_head=True')
    assert 'starts afresh with 7 classes' in printed


@pytest.mark.parametrize(
    'argument, expected',
    [
        ('--config.train.epoch=3', "no field 'train.epoch'. Did you mean 'train.epochs'"),
        ('--config.data.source=/nowhere/at/all', '/nowhere/at/all'),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, argument, expected):
    (line,) = main(tmp_path / 'workdir', argument, expect=2).splitlines()  # many more are in test_bad_input
    assert line.startswith('fixres_jax: ') and expected in line


def test_a_missing_workdir_or_config_is_said():
    config = '--config=configs/quickstart.py'
    for arguments, expected in (([], '--config is missing'), ([config], '--workdir is missing')):
        done = subprocess.run(
            [sys.executable, '-m', 'fixres_jax.main', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and expected in done.stderr


def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_name(tmp_path, tiny_folder):
    for split in ('train', 'val'):
        for folder in sorted((tiny_folder / split).iterdir()):
            copy = tmp_path / 'data' / split / folder.name
            copy.mkdir(parents=True)
            for file in folder.iterdir():
                (copy / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / 'data' / 'train' / 'bee' / 'train_03.jpg'
    broken.write_bytes(broken.read_bytes()[:200])
    options = (*SMALL, '--config.data.held_out_fraction=0', '--config.test.resolution=48')
    printed = main(tmp_path / 'workdir', f'--config.data.source={tmp_path / "data"}', *options, expect=1)
    line = printed.strip().splitlines()[-1]
    assert line.startswith('fixres_jax: ') and str(broken) in line
