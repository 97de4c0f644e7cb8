"""Models: their sizes and names, what BatchNorm does by groups and by path, what is refused."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.models import EVAL, TRAIN, Mode, layers, mpncov, resnet, resnetv2
from fixres_jax.models.architecture import IMAGENET_MEAN, IMAGENET_STD
from fixres_jax.models.layers import Classifier
from fixres_jax.models.resnet import BasicBlock, BatchNorm, ResNet
from fixres_jax.models.stages import make_stage


def shapes(name, **options):
    return models.create(name, **options).shapes()


def tiny(**options):
    """Return a network of one basic block a stage, its variables and eight images."""
    options = {'num_classes': 5, 'width': 8, 'bn_group_size': 4, 'mean': IMAGENET_MEAN, 'std': IMAGENET_STD} | options
    model = ResNet(BasicBlock, (1, 1, 1, 1), **options)
    images = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), np.uint8)
    return model, initialise(options['num_classes'], options['width']), images


@cache  # Compiling the random draws takes seconds.
def initialise(num_classes, width, **options):
    options = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD} | options
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=num_classes, width=width, **options)
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8), EVAL)


@partial(jax.jit, static_argnums=0)
def evaluate(model, variables, images):
    return model.apply(variables, images, EVAL)


@partial(jax.jit, static_argnums=(0, 3))
def train(model, variables, images, mode):
    return model.apply(variables, images, mode, mutable=['batch_stats'])


def test_paths_are_the_names_of_torch():
    names = trees.flatten(shapes('resnet50')['params'])
    assert {'conv1/kernel', 'layer4/2/bn3/scale', 'layer1/0/downsample/0/kernel', 'fc/bias'} <= names.keys()
    assert names['layer1/0/downsample/0/kernel'].shape == (1, 1, 64, 256)
    assert names['fc/kernel'].shape == (2048, 1000)
    assert 'layer1/0/downsample/0/kernel' not in trees.flatten(shapes('resnet18')['params'])


@pytest.mark.parametrize('name', resnet.ROWS)
def test_fine_tuning_names_the_classifier_and_the_last_batch_norm(name):
    variables = shapes(name)
    regexes = models.ARCHITECTURES[name].finetune()
    selected, _ = trees.split(variables['params'], regexes['trainable'])
    assert set(trees.flatten(selected)) == {'fc/kernel', 'fc/bias'}
    # The blocks '0', '1', ... sort as numbers; a shortcut's BatchNorm is not the block's last.
    last = max(layer for layer in models.batch_norm_layers(variables['batch_stats'], r'layer4/\d+/bn\d'))
    assert models.batch_norm_layers(variables['batch_stats'], regexes['batch_norm']) == (last,)


def test_a_batch_norm_applied_by_itself_runs_on_the_statistics_that_the_mode_says():
    layer, rng = BatchNorm(group_size=None), np.random.default_rng(0)
    x = np.float32(3 + 2 * rng.normal(size=(4, 5, 5, 2)))
    variables = layer.init(jax.random.key(0), x, EVAL)
    y, moved = layer.apply(variables, x, EVAL, mutable=['batch_stats'])
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)  # the running values: 0 and 1
    jax.tree.map(np.testing.assert_array_equal, moved['batch_stats'], variables['batch_stats'])
    y, moved = layer.apply(variables, x, TRAIN, mutable=['batch_stats'])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(moved['batch_stats']['mean'], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize('preference', ['default', 'bfloat16', 'tensorfloat32'])
def test_the_classifier_multiplies_in_float32_whatever_the_accelerator_prefers(preference):
    model, variables, images = tiny()
    with jax.default_matmul_precision(preference):
        program = jax.make_jaxpr(lambda *x: Classifier(5).apply(*x))(
            {'params': variables['params']['fc']}, np.ones((2, 64))
        )
    (product,) = [e for e in program.eqns if e.primitive.name == 'dot_general']
    assert product.params['precision'] == (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize('size', [(32, 32), (33, 97), (64, 48)])
def test_any_input_size(size):
    model, variables, _ = tiny()
    logits, endpoints = evaluate(model, variables, np.zeros((3, *size, 3), np.uint8))
    assert logits.shape == (3, 5) and endpoints['embedding'].shape == (3, 64)
    assert endpoints['features'].shape == (3, *(-(-side // 32) for side in size), 64)


def test_images_are_normalized_once_and_only_when_uint8():
    model, variables, images = tiny(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    prepared = (images / 255 - np.array([[[[0.5, 0.4, 0.3]]]])) / np.array([[[[0.2, 0.3, 0.4]]]])
    logits, _ = evaluate(model, variables, images)
    expected, _ = evaluate(model, variables, prepared.astype(np.float32))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match='int32'):
        evaluate(model, variables, images.astype(np.int32))


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    model, variables, images = tiny(dtype=jnp.bfloat16)
    (logits, endpoints), moved = train(model, variables, images, TRAIN)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, moved)))
    assert logits.dtype == endpoints['embedding'].dtype == jnp.float32
    assert endpoints['features'].dtype == jnp.bfloat16


def test_only_the_named_batch_norms_move_and_use_the_batch():
    model, variables, images = tiny()
    named = 'layer4/0/bn2'
    (_, endpoints), moved = train(model, variables, images, Mode(named))
    before, after = trees.flatten(variables['batch_stats']), trees.flatten(moved['batch_stats'])
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f'{named}/mean', f'{named}/var'}
    _, in_eval = evaluate(model, variables, images)
    assert not np.allclose(endpoints['features'], in_eval['features'])


def test_batch_norm_layers_refuses_a_regex_that_matches_nothing():
    batch_stats = shapes('resnet50')['batch_stats']
    assert models.batch_norm_layers(batch_stats, '') == ()
    assert len(models.batch_norm_layers(batch_stats, '.*')) == 53
    with pytest.raises(UsageError, match='layer4/2/bn3'):
        models.batch_norm_layers(batch_stats, 'layer4/3/bn3')
    with pytest.raises(UsageError, match='regular expression'):
        models.batch_norm_layers(batch_stats, '(')


def test_groups_are_a_loop_over_groups():
    rng = np.random.default_rng(1)
    x = rng.normal(3.0, 2.0, (12, 5, 7, 6)).astype(np.float32)
    scale, bias, mean, var = rng.uniform(0.5, 2.0, (4, 6)).astype(np.float32)
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': mean, 'var': var}}
    root = Mode('.*')
    y, moved = BatchNorm(group_size=4).apply(variables, x, root, mutable=['batch_stats'])
    parts, means, unbiased = [], [], []
    for group in np.split(x.astype(np.float64), 3):
        values = group.reshape(-1, 6)
        mean, var = values.mean(0), values.var(0)
        parts.append((values - mean[None]) / np.sqrt(var[None] + 1e-5))
        means.append(mean)
        unbiased.append(values.var(0, ddof=1))
    normalized = np.concatenate(parts).reshape(x.shape)
    params = {key: value.reshape(1, 1, 1, 6) for key, value in variables['params'].items()}
    np.testing.assert_allclose(y, normalized * params['scale'] + params['bias'], rtol=1e-4, atol=1e-5)
    for name, groups in (('mean', means), ('var', unbiased)):
        expected = 0.9 * variables['batch_stats'][name] + 0.1 * np.mean(groups, axis=0)
        np.testing.assert_allclose(moved['batch_stats'][name], expected, rtol=1e-5, err_msg=name)
    whole, _ = BatchNorm(group_size=None).apply(variables, x, root, mutable=['batch_stats'])
    of_twelve, _ = BatchNorm(group_size=12).apply(variables, x, root, mutable=['batch_stats'])
    np.testing.assert_array_equal(whole, of_twelve)
    assert not np.allclose(whole, y, atol=1e-3)


def test_statistics_survive_a_mean_far_from_zero():
    x = np.random.default_rng(2).normal(100.0, 1.0, (16, 8, 8, 2)).astype(np.float32)
    layer = BatchNorm(group_size=None)
    variables = layer.init(jax.random.key(0), x, EVAL)
    y, _ = BatchNorm(group_size=16).apply(variables, x, Mode('.*'), mutable=['batch_stats'])
    np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), 1.0, rtol=1e-2)


def test_zero_init_residual_starts_from_identity_blocks():
    params = trees.flatten(initialise(5, 8, zero_init_residual=True)['params'])
    zero = {name for name in params if name.endswith('scale') and not np.any(params[name])}
    assert zero == {name for name in params if name.endswith('bn2/scale')}


def test_initialisation_has_the_spread_of_torch():
    params = trees.flatten(initialise(1000, 64)['params'])
    for name in ('conv1/kernel', 'layer3/0/conv2/kernel', 'layer4/0/downsample/0/kernel'):
        height, width, _, features = params[name].shape
        np.testing.assert_allclose(np.std(params[name]), np.sqrt(2 / (height * width * features)), rtol=0.03)
    bound = 512**-0.5
    for name in ('fc/kernel', 'fc/bias'):
        assert np.abs(params[name]).max() <= bound
        np.testing.assert_allclose(np.std(params[name]), bound / np.sqrt(3), rtol=0.1)


def test_models_are_equal_when_created_alike():
    assert models.create('resnet50') == models.create('resnet50')
    assert hash(models.create('resnet50')) == hash(models.create('resnet50', mean=list(IMAGENET_MEAN)))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'name': 'resnet5'}, "Did you mean 'resnet50'"),
        ({'name': 'resnet50', 'num_classes': 0}, 'num_classes=0'),
        ({'name': 'resnet50', 'bn_group_size': 0}, 'bn_group_size=0'),
        ({'name': 'resnext50_32x4d', 'width': 8}, 'width is at least 16'),
        ({'name': 'resnet18d', 'width': 1}, 'width is at least 2'),
        ({'name': 'senet154', 'width': 16}, 'width is a multiple of 32'),
    ],
)
def test_create_refuses(arguments, message):
    with pytest.raises(UsageError, match=message):
        models.create(**arguments)


def test_a_batch_that_groups_do_not_divide_is_refused():
    model, variables, images = tiny(bn_group_size=3)
    evaluate(model, variables, images)
    with pytest.raises(UsageError, match='batch of 8 images is not a multiple of bn_group_size=3'):
        train(model, variables, images, TRAIN)
    model, variables, images = tiny(bn_group_size=1)
    with pytest.raises(UsageError, match='single value'):
        train(model, variables, images[:, :32, :32], TRAIN)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(13, 14), (14, 13), (1, 2), (8, 8)])
def test_the_first_of_equal_values_has_the_gradient_of_the_max_pool(shape, dtype):
    def reference(x):
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    def gradient(pool):
        return jax.grad(lambda x: (pool(x).astype(jnp.float32) ** 2 * jnp.arange(1.0, 4).reshape(1, 1, 1, 3)).sum())(x)

    x = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (2, *shape, 3)), dtype)  # few values, so many are equal
    pool = partial(layers.max_pool, side=3, stride=2, padding=layers.symmetric)
    np.testing.assert_array_equal(pool(x), reference(x))
    assert jnp.abs(gradient(reference)).sum() > 0
    np.testing.assert_array_equal(gradient(pool), gradient(reference))


def test_the_max_pool_does_not_hide_what_is_not_a_number():
    x = jnp.zeros((1, 8, 8, 1)).at[0, 3, 3, 0].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(x, 3, 2, layers.symmetric)).sum() == 4


def test_the_root_of_a_covariance_multiplied_by_itself_is_the_covariance():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 6)), jnp.float32)
    matrices = mpncov.covariance(x)
    wanted = [np.cov(image.reshape(-1, 6), rowvar=False, bias=True) for image in np.asarray(x)]
    np.testing.assert_allclose(matrices, wanted, rtol=1e-4, atol=1e-5)
    root = mpncov.square_root(matrices, 20)
    np.testing.assert_allclose(root @ root, matrices, rtol=1e-3, atol=1e-4)


def test_the_root_of_a_blank_map_is_a_number_and_so_is_its_gradient():
    def total(x):
        return jnp.abs(mpncov.square_root(mpncov.covariance(x), mpncov.ITERATIONS)).sum()

    value, gradient = jax.value_and_grad(total)(jnp.ones((2, 4, 4, 8)))
    assert value == 0 and jnp.isfinite(gradient).all()


@pytest.mark.parametrize('name', ['resnet18d', 'regnety_016', 'resnetv2_50'])
def test_recomputing_blocks_or_stages_changes_no_name(name):
    names = models.create(name, 5, width=8).names()
    assert all(models.create(name, 5, width=8, remat=remat).names() == names for remat in ('block', 'stage'))


def test_channel_attention_gates_by_the_means_of_neighbours():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 64)).astype(np.float32)
    layer = layers.ChannelAttention()
    kernel = layer.init(jax.random.key(0), x)['params']['conv']['kernel'].ravel()
    assert kernel.shape == (3,)
    mean = np.pad(x.mean((1, 2)), ((0, 0), (1, 1)))
    gate = sum(kernel[i] * mean[:, i : i + 64] for i in range(3))
    expected = x / (1 + np.exp(-np.asarray(gate)))[:, None, None]
    found = layer.apply({'params': {'conv': {'kernel': kernel.reshape(3, 1, 1)}}}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('block', [BasicBlock, resnet.Bottleneck, resnetv2.Block])
def test_drop_path_leaves_the_shortcut_and_doubles_what_stays(block):
    basic = {'planes': 8 // getattr(block, 'expansion', 1), 'inner': 8, 'groups': 1, 'average': False}
    basic |= {'gate': resnet.no_gate, 'zero_init_residual': False}
    own = {'features': 8} if block is resnetv2.Block else basic
    ends = {BasicBlock: 'bn2', resnet.Bottleneck: 'bn3', resnetv2.Block: 'conv3'}[block]
    layer = block(**own, stride=1, bn_group_size=None, drop_path=0.5)
    x = np.abs(np.random.default_rng(0).normal(size=(16, 4, 4, 8))).astype(np.float32)  # as after a ReLU
    variables = jax.jit(layer.init, static_argnums=2)(jax.random.key(0), x, EVAL)
    doubled = variables['params'] | {ends: jax.tree.map(lambda leaf: 2 * leaf, variables['params'][ends])}
    run = partial(layer.apply, rngs={'dropout': jax.random.key(1)})
    found = np.asarray(run(variables, x, Mode(drop_path=True)))
    twice = np.asarray(run(variables | {'params': doubled}, x, EVAL))
    dropped = (found == x).all((1, 2, 3))
    assert 0 < dropped.sum() < 16
    np.testing.assert_allclose(found[~dropped], twice[~dropped], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(variables, x, EVAL), run(variables, x, Mode(dropout=True)))


@pytest.mark.slow
def test_drop_path_is_drawn_again_the_same_where_activations_are_computed_again():
    options = {'planes': 4, 'inner': 4, 'groups': 1, 'bn_group_size': None, 'zero_init_residual': False}
    options |= {'average': False, 'gate': resnet.no_gate}
    x = np.random.default_rng(0).normal(size=(8, 3, 3, 4)).astype(np.float32)

    def gradient(remat):
        stage = make_stage(BasicBlock, 2, 1, options, remat, drop_paths=(0.5, 0.5))
        variables = jax.jit(stage.init, static_argnums=2)(jax.random.key(0), x, EVAL)

        def loss(x):
            outputs, _ = stage.apply(variables, x, TRAIN, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})
            return jnp.square(outputs).sum()

        return jax.jit(jax.grad(loss))(x)

    plain = gradient('')
    for remat in ('block', 'stage'):
        np.testing.assert_allclose(gradient(remat), plain, rtol=1e-4, atol=1e-5)
