import json
import subprocess
import sys

import numpy as np
import pytest

from fixres_jax import models
from fixres_jax.core.errors import UsageError
from fixres_jax.studies import advice
from fixres_jax.studies.sizes import TestCrop, TrainCrop

PAPER = (224, TrainCrop(), TestCrop())


def test_the_papers_settings_give_the_papers_numbers():
    """Section 3: objects look about 80 % as large, so test at 1.25 times the training size, 280 pixels."""
    result = advice.advise(*PAPER)
    assert round(result.apparent_size.mean, 1) == 0.8
    assert result.test_resolution == 280
    assert {224, 288, 384} <= set(result.sweep)  # trained; best before; best after adaptation
    assert 'test at 280' in advice.describe(result)


def test_a_wanted_test_resolution_gives_the_authors_training_resolution():
    result = advice.advise(*PAPER, wanted_test_resolution=224)
    assert result.train_resolution_for == {224: 160}


def test_the_sampler_and_the_images_matter():
    tensorflow = advice.advise(224, TrainCrop('tensorflow'), TestCrop())
    assert tensorflow.equal_resolution > advice.advise(*PAPER).equal_resolution + 20
    same = advice.advise(224, TrainCrop('resize'), TestCrop())
    assert same.test_resolution == 224 and same.apparent_size.std == 0
    landscape = advice.advise(*PAPER, image_sizes=np.array([[500, 375]] * 100))
    assert landscape.num_images == 100 and landscape.apparent_size.mean == pytest.approx(0.84, abs=0.02)
    assert 'your 100 images' in advice.describe(landscape)


def test_work_is_counted_as_published():
    """ResNet-18 at 224: 1.81 G multiply-adds, padding included; XLA leaves out those with padding's zeros."""
    work = advice.flops(models.create('resnet18'), (224, 160, 32))
    assert work[224] == pytest.approx(2 * 1.81e9, rel=0.08)
    assert 0.45 < work[160] / work[224] < 160**2 / 224**2 + 0.01
    assert work[32] < work[160]


def test_costs_and_latency_follow_from_the_work():
    model = models.create('resnet18', width=16)
    result = advice.advise(64, TrainCrop(), TestCrop(), model=model, images_per_second=100, max_milliseconds=30)
    costs = {row['resolution']: row for row in result.costs}
    assert costs[64]['relative'] == 1.0 and costs[32]['relative'] < 0.3
    chosen = result.latency['test_resolution']
    assert 64 < chosen <= 128 and result.latency['milliseconds'] <= 30
    larger = advice.flops(model, (64, chosen + 32))
    assert 10 * larger[chosen + 32] / larger[64] > 30  # the next size would take too long
    assert list(result.train_resolution_for) == [chosen]
    assert 'Within your time' in advice.describe(result) and 'GFLOP' in advice.describe(result)


@pytest.mark.parametrize('options, words', [
    ({'train_resolution': 8}, 'train_resolution=8 is too small'),
    ({'wanted_test_resolution': 16}, 'wanted_test_resolution=16 is too small'),
    ({'images_per_second': 10.0}, 'go together'),
    ({'images_per_second': -1.0, 'max_milliseconds': 1.0}, 'not above 0'),
    ({'images_per_second': 10.0, 'max_milliseconds': 0.01}, 'No resolution of 32 or more'),
])  # fmt: skip
def test_impossible_wishes_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        advice.advise(**{'train_resolution': 224, 'train': TrainCrop(), 'test': TestCrop()} | options)


def test_the_command_prints_json_and_one_line_for_a_misspelt_model(tiny_folder):
    command = [sys.executable, '-m', 'fixres_jax.advise', '--train-resolution', '64']
    options = ['--images', str(tiny_folder), '--model', 'none', '--json']
    done = subprocess.run(command + options, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)['num_images'] == 72
    failed = subprocess.run([*command, '--model', 'resnet05'], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stdout == ''
    assert failed.stderr.count('\n') == 1 and "Did you mean 'resnet50'" in failed.stderr
