"""Losses, hits and intervals against independent formulas; the log across restarts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy import optimize, special, stats

from fixres_jax.core import files, losses
from fixres_jax.evaluation import intervals
from fixres_jax.training import metrics_log


def test_cross_entropy_and_its_smoothing():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32), np.array([0, 4, 2, 1, 3, 3], np.int32)
    log_p = special.log_softmax(logits, axis=1)
    picked = log_p[np.arange(6), labels]
    np.testing.assert_allclose(losses.cross_entropy(jnp.array(logits), jnp.array(labels)), -picked, rtol=1e-5)
    smooth = losses.cross_entropy(jnp.array(logits), jnp.array(labels), 0.1)
    np.testing.assert_allclose(smooth, -0.9 * picked - 0.1 * log_p.mean(axis=1), rtol=1e-5)


def test_hits_count_ranks_and_break_ties_by_index():
    logits = jnp.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, jnp.nan, 1.0]])
    labels = jnp.array([2, 0, 2, 1])
    assert losses.hits(logits, labels, 1).tolist() == [False, True, False, False]
    assert losses.hits(logits, labels, 2).tolist() == [True, True, False, False]
    assert losses.hits(logits, labels, 5).tolist() == [True, True, True, False]  # fewer classes than places


@pytest.mark.parametrize('successes, count', [(0, 10), (81, 100), (3100, 3925), (10, 10)])
def test_wilson_is_the_inversion_of_the_score_test(successes, count):
    low, high = intervals.wilson(successes, count)
    p = successes / count
    assert low <= p <= high
    z = stats.norm.ppf(0.975)
    for bound, inner in ((low, p - 1e-9), (high, p + 1e-9)):
        if 0 < bound < 1:
            edge = (0.0, inner) if bound < p else (inner, 1.0)
            root = optimize.brentq(lambda q: (p - q) ** 2 - z**2 * q * (1 - q) / count, *edge)
            assert bound == pytest.approx(root, abs=1e-6)


def test_wilson_ends_at_0_and_1_and_nowhere_else():
    assert intervals.wilson(81, 100) == pytest.approx((0.7222, 0.8749), abs=5e-5)
    for count in range(1, 300):
        low, high = intervals.wilson(count, count)
        assert 0 < low < high == 1
        assert intervals.wilson(0, count) == (0, pytest.approx(1 - low))


@pytest.mark.parametrize(
    ('only_first', 'only_second', 'count', 'low', 'high'),
    [
        (1, 7, 21, -50.8, -1.3),  # Fagerland, Lydersen and Laake 2014, table V; Wald's is -52.0 to -5.2
        (6, 16, 161, -11.95, -0.32),  # the R package contingencytables, of Cavo et al. 2012
        (0, 0, 10, -23.10, 23.10),  # 1.96 * sqrt(2 / 12 / 12), where Wald's has no width
        (10, 0, 10, 52.06, 100.0),  # 10 / 12 -+ 1.96 * sqrt((1 - (10 / 12)^2) / 12), cut at 100
    ],
)
def test_paired_interval_is_bonett_and_prices(only_first, only_second, count, low, high):
    found = intervals.paired(only_first, only_second, count)
    assert found['difference'] == pytest.approx(100 * (only_first - only_second) / count)
    assert (found['low'], found['high']) == pytest.approx((low, high), abs=0.06)
    mirrored = intervals.paired(only_second, only_first, count)
    assert (mirrored['low'], mirrored['high']) == pytest.approx((-found['high'], -found['low']))


@pytest.mark.parametrize(('first', 'second', 'count'), [(0.2, 0.1, 30), (0.1, 0.1, 40), (0.4, 0.1, 30)])
def test_paired_interval_covers_at_its_rate(first, second, count):
    """Over all outcomes, each at its probability; Wald's interval covers less than 94 % of them at these."""
    pairs = np.array([(a, b, count - a - b) for a in range(count + 1) for b in range(count + 1 - a)])
    weights = stats.multinomial.pmf(pairs, count, [first, second, 1 - first - second])
    found = [intervals.paired(int(a), int(b), count) for a, b, _ in pairs]
    covers = np.array([one['low'] <= 100 * (first - second) <= one['high'] for one in found])
    assert weights.sum() == pytest.approx(1)
    assert 0.95 < weights[covers].sum() < 0.965


def test_a_log_that_goes_on_keeps_each_step_once(tmp_path):
    tmp_path = tmp_path / 'not' / 'there'
    log = metrics_log.MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, loss=1.0 / step, seconds=float(step))
    log.close()
    points = [(('loss', step, pytest.approx(1 / step)), ('seconds', step, float(step))) for step in (1, 2, 3)]
    assert list(tensorboard_points(tmp_path / 'tensorboard')) == [point for pair in points for point in pair]
    log = metrics_log.MetricsLog(tmp_path, 2)
    log.write(3, loss=9.0, seconds=7.0)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [(line['step'], line['loss']) for line in lines] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert [metrics_log.seconds_until(tmp_path / 'metrics.jsonl', step) for step in (0, 1, 2, 3)] == [0, 1, 2, 7]
    # TensorBoard is told to forget what it has of step 3 on.
    assert max(restarts(tmp_path / 'tensorboard')) == 3


def test_a_log_cut_short_by_a_kill_is_read_up_to_there(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    assert metrics_log.read_metrics(path) == []
    for rest in ('', '\n{"step": 4}\n'):
        path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo' + rest)
        assert metrics_log.read_metrics(path) == [{'step': 1}, {'step': 2}]


def test_json_comes_back_as_it_was(tmp_path):
    value = {'a': [1, 2.5, None], 'b': {'c': 'd'}}
    files.write_json(epath.Path(tmp_path) / 'some.json', value)
    text = (tmp_path / 'some.json').read_text()
    assert json.loads(text) == value and text.endswith('}\n')


def test_arrays_come_back_as_they_were(tmp_path):
    path = epath.Path(tmp_path) / 'some.npz'
    assert files.read_arrays(path) == {}
    arrays = {'a/b': np.arange(3.0), 'c': np.ones((2, 2), np.uint8)}
    files.write_arrays(path, arrays)
    found = files.read_arrays(path)
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def events(folder):
    """Yield the events of TensorBoard's files: records of length, its checksum, the event, its checksum."""
    from tensorboardX.proto import event_pb2

    for path in folder.glob('events.*'):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], 'little')
            yield event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[12 + size + 4 :]


def tensorboard_points(folder):
    """Yield (name, step, value)."""
    for event in events(folder):
        yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


def restarts(folder):
    """Yield the steps from which on earlier points are to be forgotten."""
    return [event.step for event in events(folder) if event.HasField('session_log')]
