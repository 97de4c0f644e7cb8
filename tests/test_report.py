"""The verdict of a report: what is resolution, what is refitting, and what the images cannot tell."""

import pytest

from fixres_jax.report import report


def change(difference, half=1.0):
    return {'difference': difference, 'low': difference - half, 'high': difference + half}


@pytest.fixture
def found():
    return {
        'train_resolution': 48,
        'test_resolution': 64,
        'larger_minus_train_resolution': change(-8.25),
        'adapted_minus_train_resolution': change(6.45),
        'control_minus_train_resolution': change(0.5),
        'adapted_minus_control': change(5.95),
    }


def test_the_verdict_tells_resolution_from_refitting(found):
    assert report.verdict(found) == (
        'Adapted and tested at 64, the network gains 6.45 points of top-1 (95 % interval of the change +5.45 to +7.45) '
        'over its training size, 48. The larger size alone, without adaptation, loses 8.25 points of top-1 (95 % '
        'interval of the change -9.25 to -7.25). Refitting alone, adapted at 48, shows no detectable effect on these '
        'images: +0.50 points of top-1 (95 % interval of the change -0.50 to +1.50). The rest is resolution: between '
        'adapted networks, 64 over 48 gains 5.95 points of top-1 (95 % interval of the change +4.95 to +6.95).'
    )


def test_without_the_control_the_verdict_says_what_is_not_known(found):
    del found['control_minus_train_resolution'], found['adapted_minus_control']
    said = report.verdict(found)
    assert said.endswith('How much of it is refitting was not measured (control=False).') and 'The rest' not in said


def test_a_training_size_that_was_kept_is_no_gain_of_resolution(found):
    found['test_resolution'] = 48
    said = report.verdict(found)
    assert said.startswith('No larger resolution was better') and 'The rest' not in said and 'larger size' not in said
