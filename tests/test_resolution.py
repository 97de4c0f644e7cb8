"""A resolution that is no square: its text, its place among squares, and a whole recipe with one."""

import json
import pickle

import pytest

from configs import base
from fixres_jax.core.resolution import Resolution, shape, side
from fixres_jax.runs import recipe


@pytest.mark.parametrize('value', [True, 1.5, (1, 2, 3), 'wide', '352x', (352, 6.5), None, ()])
def test_what_is_no_resolution_is_refused(value):
    with pytest.raises(TypeError):
        Resolution.parse(value)


def test_it_has_its_place_among_squares_by_the_number_of_pixels():
    wide, tall = Resolution.parse((352, 640)), Resolution.parse('640x352')
    assert wide != tall and side(wide) == side(tall) == pytest.approx(474.64, abs=0.01)
    assert sorted([480, wide, 448]) == [448, wide, 480] and max(448, wide) is wide and min(wide, 224) == 224
    assert 474 < wide < 475 and wide >= tall and not wide > tall
    assert shape(wide) == (352, 640)


def test_it_is_what_it_was_when_it_comes_back():
    wide = Resolution.parse((352, 640))
    for back in (json.loads(json.dumps(wide)), pickle.loads(pickle.dumps(wide))):
        assert back == wide and {wide: 1}[back] == 1 and Resolution.parse(back) == wide and f'{back}' == '352x640'


@pytest.mark.slow
def test_a_recipe_adapts_and_reports_at_sizes_that_are_no_squares(tiny_folder, tmp_path):
    c = base.get_config()
    c.model.update(name='resnet18', width=8, bn_group_size=16)
    c.data.update(source=str(tiny_folder), held_out_fraction=0.25)
    c.train.update(resolution=32, epochs=2.0, batch_size=16, lr=0.1, lr_rule='none')
    c.test.update(resolutions=(32, (32, 64), '48x40'), batch_size=16)
    c.adapt.weight_decays = (1e-4,)
    recipe.run(c, tmp_path)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert [row['resolution'] for row in report['curve']] == [32, '48x40', '32x64']
    assert '| 48x40 |' in (tmp_path / 'report.md').read_text()
    swept = json.loads((tmp_path / 'sweep.json').read_text())
    assert swept['adaptations'].keys() == {'32', '32x64', '48x40'}
    # What is left of a run that was stopped after its sweep reads the sizes from its files.
    for phase in ('adapt', 'control', 'evaluate', 'studies'):
        (tmp_path / f'{phase}.json').unlink()
    recipe.run(c, tmp_path)
    again = json.loads((tmp_path / 'report.json').read_text())
    timed = [{name: value for name, value in row.items() if name != 'milliseconds'} for row in report['curve']]
    assert [row | again_row == again_row for row, again_row in zip(timed, again['curve'], strict=True)] == [True] * 3
    assert again['numbers'] == report['numbers']
    # The size given: what is adapted there says so, and may be taken up by another run.
    other = base.get_config()
    other.update(task='adapt', init_from=str(tmp_path / 'train'))
    other.model.bn_group_size = 16
    other.data.update(source=str(tiny_folder), held_out_fraction=0.25)
    other.test.update(resolution='40x64', batch_size=16)
    other.adapt.weight_decays = (1e-4,)
    recipe.run(other, tmp_path / 'other')
    assert json.loads((tmp_path / 'other/adapt/fixres.json').read_text())['test_resolution'] == '40x64'
    last = base.get_config()
    last.update(task='evaluate', init_from=str(tmp_path / 'other'))
    last.data.source = str(tiny_folder)
    last.test.update(batch_size=16)
    recipe.run(last, tmp_path / 'last')
    points = json.loads((tmp_path / 'last/evaluate.json').read_text())['points']
    assert '40x64' in [point['resolution'] for point in points]
