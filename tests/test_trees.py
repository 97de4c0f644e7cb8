import numpy as np
import pytest

from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError

TREE = {
    'conv1': {'kernel': np.zeros((3, 3, 3, 8))},
    'layer4': {'2': {'bn3': {'scale': np.zeros(8), 'bias': np.zeros(8)}}},
    'fc': {'kernel': np.zeros((8, 10)), 'bias': np.zeros(10)},
}


def test_names_are_paths_and_flatten_is_undone_by_unflatten():
    flat = trees.flatten(TREE)
    assert list(flat) == ['conv1/kernel', 'layer4/2/bn3/scale', 'layer4/2/bn3/bias', 'fc/kernel', 'fc/bias']
    back = trees.unflatten(flat)
    assert trees.flatten(back).keys() == flat.keys()
    assert all(trees.flatten(back)[name] is leaf for name, leaf in flat.items())


def test_split_takes_whole_names_and_merge_undoes_it():
    selected, rest = trees.split(TREE, '(fc|layer4/2/bn3)/.*')
    assert set(trees.flatten(selected)) == {'fc/kernel', 'fc/bias', 'layer4/2/bn3/scale', 'layer4/2/bn3/bias'}
    assert set(trees.flatten(rest)) == {'conv1/kernel'}
    assert not trees.diff(TREE, trees.merge(rest, selected))
    everything, nothing = trees.split(TREE, '.*')
    assert not nothing and not trees.diff(TREE, everything)


@pytest.mark.parametrize('regex', ['fc', 'layer5/.*', 'conv1/kernel/.+'])
def test_a_regex_that_matches_nothing_names_what_is_near(regex):
    with pytest.raises(UsageError, match='Near names: .*/'):
        trees.split(TREE, regex)


def test_a_broken_regex_is_refused():
    with pytest.raises(UsageError, match='not a regular expression'):
        trees.split(TREE, 'fc/(')


def test_merge_refuses_a_leaf_that_both_have():
    with pytest.raises(AssertionError, match='fc/bias'):
        trees.merge(TREE, {'fc': {'bias': np.zeros(10)}})


def test_count_is_the_number_of_scalars():
    assert trees.count(TREE) == 3 * 3 * 3 * 8 + 8 + 8 + 80 + 10
    assert trees.count({}) == 0


def test_diff_is_false_for_equal_trees_and_names_every_difference():
    assert not trees.diff(TREE, TREE)
    found = trees.flatten(TREE)
    del found['conv1/kernel']
    found['conv1/kernels'] = np.zeros(3)
    found['fc/bias'] = np.zeros(7)
    difference = trees.diff(TREE, trees.unflatten(found))
    assert difference.missing == ('conv1/kernel',) and difference.extra == ('conv1/kernels',)
    assert difference.misshaped == (('fc/bias', (10,), (7,)),)
    message = difference.message()
    assert 'missing: conv1/kernel' in message and 'conv1/kernels (is it conv1/kernel?)' in message
    assert 'fc/bias: expected (10,), found (7,)' in message


def test_a_message_of_many_differences_stays_short_and_says_how_many():
    expected = {f'leaf{index}': np.zeros(1) for index in range(20)}
    lines = trees.diff(expected, {}).message(limit=3).splitlines()
    assert len(lines) == 4 and lines[-1] == '... and 17 more missing'
    lines = trees.diff(expected, {f'other{index}': np.zeros(1) for index in range(20)}).message(limit=6).splitlines()
    assert len(lines) == 8 and lines[3::4] == ['... and 17 more missing', '... and 17 more not expected']
