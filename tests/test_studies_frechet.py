import numpy as np
import pytest
from scipy import stats

from fixres_jax.core.errors import UsageError
from fixres_jax.studies import frechet
from fixres_jax.studies.frechet import Frechet


def draw(distribution, count=50_000, seed=0):
    return distribution.quantile(np.random.default_rng(seed).uniform(1e-12, 1, count))


@pytest.mark.parametrize('shape', [0.3, 0.1, 1e-8, -0.3])
def test_the_distribution_is_scipys(shape):
    ours, theirs = Frechet(1.0, 2.0, shape), stats.genextreme(-shape, loc=1.0, scale=2.0)
    values = np.linspace(-9, 9, 101)
    np.testing.assert_allclose(ours.cdf(values), theirs.cdf(values), atol=1e-6)
    shares = np.linspace(0.01, 0.99, 21)
    np.testing.assert_allclose(ours.quantile(shares), theirs.ppf(shares), rtol=1e-5)


@pytest.mark.parametrize('truth', [Frechet(0.4, 0.2, 0.3), Frechet(-3.0, 2.0, 0.1), Frechet(5.0, 1.0, -0.2)])
def test_known_parameters_are_recovered(truth):
    free, fixed = frechet.fit(draw(truth), shape=None), frechet.fit(draw(truth), shape=truth.shape)
    for found, tolerance in ((free, 0.03), (fixed, 0.02)):
        assert found.location == pytest.approx(truth.location, abs=tolerance * truth.scale)
        assert found.scale == pytest.approx(truth.scale, rel=tolerance)
        assert found.shape == pytest.approx(truth.shape, abs=0.02)
        assert frechet.distance(draw(truth), found) < 0.01
    assert fixed.shape == truth.shape


def test_a_wrong_distribution_is_told_by_its_distance():
    assert frechet.distance(draw(Frechet(0, 1, 0.3)), Frechet(1, 1, 0.3)) > 0.2


@pytest.mark.parametrize('shape', [0.3, None])
def test_equalizing_a_sample_to_itself_is_the_identity(shape):
    sample = draw(Frechet(0.4, 0.2, 0.3), 1000).astype(np.float32)
    fitted = frechet.fit(sample, shape)
    mapped = frechet.equalize(sample, fitted, fitted)
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(mapped, sample, rtol=1e-6)


@pytest.mark.parametrize('shape', [0.3, None])
def test_equalization_brings_one_sample_to_the_distribution_of_the_other(shape):
    before, after = draw(Frechet(0.5, 0.3, 0.3)), draw(Frechet(0.4, 0.2, 0.3), seed=1)
    mapped = frechet.equalize(before.reshape(100, -1), frechet.fit(before, shape), frechet.fit(after, shape))
    assert mapped.shape == (100, 500)
    assert stats.ks_2samp(before, after).statistic > 0.1
    assert stats.ks_2samp(mapped.ravel(), after).statistic < 0.01


def test_a_common_shape_makes_the_map_affine_and_any_map_rises():
    values = np.linspace(-2, 5, 50)
    affine = frechet.equalize(values, Frechet(1, 2, 0.3), Frechet(4, 1, 0.3))
    np.testing.assert_allclose(affine, 4 + (values - 1) / 2)
    curved = frechet.equalize(values, Frechet(1, 2, 0.3), Frechet(4, 1, 0.1))
    assert np.isfinite(curved).all() and (np.diff(curved) >= 0).all() and np.ptp(np.diff(curved)) > 0.01


def test_values_beyond_the_support_stay_finite_and_in_order():
    for source in (Frechet(0, 1, 0.5), Frechet(0, 1, -0.5)):
        mapped = frechet.equalize(np.array([-1e6, 0, 1e6]), source, Frechet(0, 1, 0.2))
        assert np.isfinite(mapped).all() and (np.diff(mapped) > 0).all()


@pytest.mark.parametrize('values, shape, words', [
    (np.ones(100), 0.3, 'All 100 activations are 1'),
    (np.zeros(3), 0.3, 'too few'),
    (np.array([np.nan] + [1.0] * 20), 0.3, 'not finite'),
    (np.arange(20.0), 1.5, 'The shape is 1.5'),
])  # fmt: skip
def test_samples_without_a_fit_are_refused(values, shape, words):
    with pytest.raises(UsageError, match=words):
        frechet.fit(values, shape)
