"""How fresh parameters are drawn: as Flax draws them, but as numbers in a row."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixres_jax.models import create, initializers

FLAX = nn.initializers


@pytest.mark.parametrize('shape', [(1, 1, 5, 7), (3, 1, 1, 8)])
@pytest.mark.parametrize(
    ('ours', 'flax'),
    [
        (initializers.KAIMING, FLAX.variance_scaling(2.0, 'fan_out', 'normal')),
        (
            initializers.fan_out(8.0, initializers.UNIT_TRUNCATED_NORMAL),
            FLAX.variance_scaling(8.0, 'fan_out', 'truncated_normal'),
        ),
        (initializers.TRUNCATED, FLAX.truncated_normal(0.02)),
        (initializers.normal(1e-6), FLAX.normal(1e-6)),
        (initializers.uniform(0.25), lambda *given: FLAX.uniform(0.5)(*given) - 0.25),
    ],
)
def test_the_numbers_are_those_of_flax(ours, flax, shape):
    key = jax.random.key(3)
    expected = np.asarray(flax(key, shape, jnp.float32))
    # Flax divides by the deviation of a truncated normal where we multiply.
    np.testing.assert_allclose(ours(key, shape, jnp.float32), expected, rtol=2e-6, atol=1e-7 * abs(expected).max())


@pytest.mark.parametrize('name', ['resnet18', 'tf_efficientnet_lite0', 'convnext_tiny', 'vit_small_patch16_224'])
def test_no_leaf_of_a_network_is_drawn_in_its_own_shape(name):
    """XLA's compiler for CPUs takes seconds for each that is."""
    program = jax.jit(create(name, num_classes=7).init).lower(jax.random.key(0)).as_text()
    drawn = [list(map(int, shape.split('x'))) for shape in re.findall(r'tensor<([\dx]+)xui32>', program)]
    assert any(max(shape) > 100 for shape in drawn)
    assert [shape for shape in drawn if sum(side > 2 for side in shape) > 1] == []
