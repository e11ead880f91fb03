"""Layers against their definitions, fusions and stand-ins by hand."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.models.batch_norm import normalised
from fedcmi_jax.models.layers import BatchNorm, GroupNorm, conv
from fedcmi_jax.models.pooling import max_pool
from fedcmi_jax.models.two_projector import replace_missing
from fedcmi_jax.testing.problem import dataset, model


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


class Layer(nn.Module):
    """``conv`` as an encoder calls it."""

    features: int
    kernel: int
    stride: int = 1
    pool: Any = None

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        options = {"scale": scale, "shift": shift, "pool": self.pool, "name": "conv"}
        return conv(x, self.features, self.kernel, self.stride, **options)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 9, 8, 3), {"kernel_size": (3, 2)}),
        ((2, 9, 8, 3), {"kernel_size": (3, 3), "strides": (2, 1), "padding": "VALID"}),
        ((2, 9, 8, 3), {"kernel_size": (3, 3), "padding": "CIRCULAR"}),
        ((2, 9, 8, 4), {"kernel_size": (3, 3), "feature_group_count": 2}),
        ((2, 9, 3), {"kernel_size": 5, "padding": "CAUSAL", "kernel_dilation": 2}),
        ((9, 8, 3), {"kernel_size": (3, 3), "padding": 1, "use_bias": False}),
        ((9, 8, 3), {"kernel_size": (3, 3), "dtype": jnp.bfloat16}),
    ],
)
def test_conv_is_a_drop_in_for_flax(shape, options):
    """The same parameters from the same key, and the same numbers."""
    x = normal(*shape)
    ours, theirs = (
        jax.jit(module(6, **options).init_with_output)(jax.random.key(1), x)
        for module in (fc.models.Conv, nn.Conv)
    )
    # Two programs: an initial value may be rounded differently.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, ours[1], theirs[1])
    assert ours[0].dtype == theirs[0].dtype
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [7, 8])
def test_max_pool_equals_reduce_window(side):
    x = normal(2, side, side, 3)
    expected = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
    np.testing.assert_array_equal(max_pool(x), expected)


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (1, 2)])
@pytest.mark.parametrize("levels", [3, 1000])
def test_max_pool_gives_the_gradient_to_the_first_of_equals(size, levels):
    x = jnp.round(levels * normal(2, *size, 3))
    rows = jnp.pad(x, [(0, 0), (1, 2), (1, 2), (0, 0)], constant_values=-jnp.inf)
    dy = normal(*max_pool(x).shape, seed=1)
    found = jax.grad(lambda x: (max_pool(x) * dy).sum())(x)
    expected = np.zeros(rows.shape)
    # One axis after the other: rows first, then the columns of what is left.
    for b, i, j, c in np.ndindex(dy.shape):
        window = np.asarray(rows[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c])
        column = window.max(0).argmax()
        row = window[:, column].argmax()
        expected[b, 2 * i + row, 2 * j + column, c] += dy[b, i, j, c]
    expected = expected[:, 1 : 1 + size[0], 1 : 1 + size[1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_pooled_conv_adds_its_bias_afterwards_to_the_same_bits():
    x, layer = normal(2, 9, 8, 3), Layer(4, 3)
    params = layer.init(jax.random.key(1), x)
    expected = max_pool(layer.apply(params, x))
    np.testing.assert_array_equal(Layer(4, 3, pool=max_pool).apply(params, x), expected)


def test_conv_initialisation():
    x = jnp.zeros((1, 8, 8, 16))
    params = Layer(64, 3).init(jax.random.key(0), x)["params"]["conv"]
    expected = np.sqrt(2 / (64 * 9))
    assert abs(float(params["kernel"].std()) / expected - 1) < 0.05
    bound = (16 * 9) ** -0.5
    assert float(jnp.abs(params["bias"]).max()) <= bound
    assert float(jnp.abs(params["bias"]).max()) > 0.8 * bound


def batch_norm(x, mask, train, state=None):
    layer = BatchNorm()
    variables = state or layer.init(jax.random.key(0), x, mask, False)
    (y, scale, shift), updated = layer.apply(
        variables, x, mask, train, mutable=["batch_stats"]
    )
    wide = (1,) * (y.ndim - 1) + (-1,)
    return y * scale.reshape(wide) + shift.reshape(wide), updated["batch_stats"]


def test_batch_norm_has_torch_conventions():
    x = jnp.array([[1.0], [2.0], [6.0]])
    y, stats = batch_norm(x, jnp.ones(3), True)
    # Mean 3, biased variance 14/3, unbiased 7.
    np.testing.assert_allclose(y, (x - 3) / np.sqrt(14 / 3 + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(stats["mean"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [0.9 + 0.7], rtol=1e-6)


def test_batch_norm_ignores_masked_samples():
    x = normal(6, 4, 4, 3)
    mask = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    y, stats = batch_norm(x.at[4:].set(1e6), mask, True)
    expected, expected_stats = batch_norm(x[:4], jnp.ones(4), True)
    np.testing.assert_allclose(y[:4], expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, expected_stats
    )


def test_batch_norm_without_samples_keeps_its_statistics():
    x = normal(3, 2)
    _, before = batch_norm(x, jnp.ones(3), True)
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    y, after = batch_norm(x, jnp.zeros(3), True, variables | {"batch_stats": before})
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert bool(jnp.isfinite(y).all())


def test_batch_norm_of_one_sample_is_finite():
    y, stats = batch_norm(jnp.array([[5.0]]), jnp.ones(1), True)
    assert bool(jnp.isfinite(y).all())
    np.testing.assert_allclose(stats["var"], [0.9], rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (37, 3), (64, 7, 2)])
def test_batch_norm_gradient_is_that_of_its_formula(shape):
    """The closed gradient against autodiff of the definition, in float64."""
    x, weights = normal(*shape), normal(*shape, seed=1)
    mask = (jnp.arange(shape[0]) < shape[0] - 2).astype(jnp.float32)
    scale, shift = normal(shape[-1], seed=2), normal(shape[-1], seed=3)

    def ours(x, scale, shift):
        start = jnp.zeros(shape[-1])
        z, _, _ = normalised(x, mask, scale, shift, start, start)
        return (z * weights).sum()

    def defined(x, scale, shift):
        wide = (1,) * (x.ndim - 1) + (-1,)
        real = x[: shape[0] - 2].reshape(-1, shape[-1])
        mean, var = real.mean(0).reshape(wide), real.var(0).reshape(wide)
        z = (x - mean) / jnp.sqrt(var + 1e-5)
        return ((z * scale.reshape(wide) + shift.reshape(wide)) * weights).sum()

    found = jax.jit(jax.grad(ours, (0, 1, 2)))(x, scale, shift)
    with jax.enable_x64(True):
        args = [np.float64(a) for a in (x, scale, shift)]
        weights = np.float64(weights)
        expected = jax.jit(jax.grad(defined, (0, 1, 2)))(*args)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_group_norm_has_no_state_and_normalises_samples():
    x = normal(4, 5, 5, 3)
    variables = GroupNorm().init(jax.random.key(0), x, jnp.ones(4), True)
    assert set(variables) == {"params"}
    y, _, _ = GroupNorm().apply(variables, x, jnp.ones(4), True)
    np.testing.assert_allclose(y.reshape(4, -1).mean(1), 0, atol=1e-5)


def dense(p, x):
    return x @ p["kernel"] + p["bias"][None]


FUSIONS = {
    "concat": lambda p, x, y: dense(p["out"], jnp.concatenate([x, y], 1)),
    "sum": lambda p, x, y: dense(p["out0"], x) + dense(p["out1"], y),
    "film": lambda p, x, y: dense(
        p["out"], dense(p["film"], x)[:, :8] * y + dense(p["film"], x)[:, 8:]
    ),
    "gated": lambda p, x, y: dense(
        p["out"], jax.nn.sigmoid(dense(p["gate"], x)) * dense(p["value"], y)
    ),
}


@pytest.mark.parametrize("fusion", fc.models.FUSIONS)
@pytest.mark.parametrize("kind", ["classifier", "two_projector"])
def test_fusion_formulas(fusion, kind):
    net = model(kind, fusion=fusion)
    params, _ = net.init(jax.random.key(0))
    x, y = normal(3, 8), normal(3, 8, seed=1)
    parts = dict(zip(net.modalities, (x, y), strict=True))
    np.testing.assert_allclose(
        net.fuse(params, parts), FUSIONS[fusion](params["fusion"], x, y), rtol=1e-5
    )


def test_missing_modality_is_replaced_by_the_other_ones_infiltration():
    own = {"a": jnp.full((3, 1), 1.0), "v": jnp.full((3, 1), 2.0)}
    infiltration = {"a": jnp.full((3, 1), 10.0), "v": jnp.full((3, 1), 20.0)}
    available = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    parts = replace_missing(own, infiltration, available, ("a", "v"))
    np.testing.assert_array_equal(parts["a"][:, 0], [1, 1, 20])
    np.testing.assert_array_equal(parts["v"][:, 0], [2, 10, 2])


def batch_of(data, available):
    n = len(available)
    return fc.Batch(
        inputs={m: jnp.asarray(x[:n]) for m, x in data.train.inputs.items()},
        labels=jnp.asarray(data.train.labels[:n]),
        valid=jnp.ones(n),
        available=jnp.array(available, jnp.float32),
        positions=jnp.arange(n),
    )


@pytest.mark.parametrize("kind", ["classifier", "two_projector"])
def test_a_missing_modality_is_not_looked_at(kind):
    net, data = model(kind), dataset()
    params, stats = net.init(jax.random.key(0))
    batch = batch_of(data, [[1, 0]] * 4)
    first, second = net.modalities
    other = batch._replace(inputs=batch.inputs | {second: batch.inputs[second] + 50})
    a, _ = net.apply(params, stats, batch, True)
    b, _ = net.apply(params, stats, other, True)
    np.testing.assert_array_equal(a.logits, b.logits)
    gradient = jax.grad(lambda p: net.apply(p, stats, batch, True)[0].logits.sum())(
        params
    )
    assert all(not x.any() for x in jax.tree.leaves(gradient["encoder"][second]))
    assert all(x.any() for x in jax.tree.leaves(gradient["encoder"][first]))


def test_ownership_of_blocks():
    net = model()
    owned = net.owned(jnp.array([1.0, 0.0]))
    trained = net.trained(jnp.array([1.0, 0.0]))
    first, second = net.modalities
    assert float(owned["head"][first]) == 1
    assert float(owned["head"][second]) == 0
    assert float(trained["head"][first]) == 0
    assert float(trained["encoder"][first]) == 1
    assert float(owned["fusion"]) == 1
    assert jax.tree.structure(owned) == jax.tree.structure(trained)


def test_xavier_normal_linear_layers_with_zero_bias():
    encoders = {m: fc.models.mlp(features=256) for m in dataset().modalities}
    net = fc.models.two_projector(encoders, dataset().shapes, 4, width=256)
    params, _ = net.init(jax.random.key(0))
    layer = params["self_projector"][net.modalities[0]]["dense0"]
    assert abs(float(layer["kernel"].std()) / np.sqrt(2 / 512) - 1) < 0.02
    assert not layer["bias"].any()


def test_convnet_on_small_and_reference_images():
    for side, channels in ((8, 3), (28, 1)):
        net = fc.models.convnet(features=16)
        x = normal(2, side, side, channels)
        variables = net.init(jax.random.key(0), x, jnp.ones(2), False)
        y = net.apply(variables, x, jnp.ones(2), False)
        assert y.shape == (2, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "mean"}, "fusion: unknown 'mean'"),
        ({"projector": "deep"}, "projector: unknown 'deep'"),
        ({"width": 0}, "width: 0 is not positive"),
    ],
)
def test_bad_model_options(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_pairwise_fusion_of_three_modalities_is_refused():
    with pytest.raises(ValueError, match="'film' is defined for two modalities"):
        model(modalities=("a", "b", "c"), fusion="film")


def test_missing_encoder_is_named():
    with pytest.raises(ValueError, match="encoders: given for"):
        fc.models.classifier({"zeta": fc.models.mlp()}, dataset().shapes, 4)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [((2, 6, 6, 3), 3, 1), ((2, 12, 9, 1), 7, 2), ((2, 9, 4), 5, 1)],
)
def test_affine_conv_is_the_convolution_of_the_mapped_samples(shape, kernel, stride):
    x, layer = normal(*shape), Layer(4, kernel, stride)
    scale, shift = normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    params = layer.init(jax.random.key(1), x)

    def mapped(params, scale, shift):
        wide = (1,) * (x.ndim - 1) + (-1,)
        return layer.apply(params, x * scale.reshape(wide) + shift.reshape(wide))

    def affine(params, scale, shift):
        return layer.apply(params, x, scale, shift)

    def values(form):
        y, vjp = jax.vjp(form, params, scale, shift)
        return y, vjp(y)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        jax.jit(lambda: values(affine))(),
        jax.jit(lambda: values(mapped))(),
    )


@pytest.mark.parametrize("frames", [(), (2,)])
def test_resnet18_has_the_published_parameters(frames):
    x = jnp.zeros((2, *frames, 32, 32, 3))
    encoder = fc.models.resnet18()
    shapes = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), x, jnp.ones(2), False)
    )
    weights = jax.tree.leaves(shapes["params"])
    # torchvision's resnet18 has 11,689,512, of them 513,000 in its last layer.
    assert sum(w.size for w in weights) == 11_689_512 - 513_000
    y = jax.eval_shape(
        lambda: encoder.apply(
            jax.tree.map(lambda s: jnp.zeros(s.shape), shapes), x, jnp.ones(2), False
        )
    )
    assert y.shape == (2, 512)


class Normalised(nn.Module):
    """An encoder of a user: a dense layer and a norm, two modules deep."""

    norm: str

    @nn.compact
    def __call__(self, x, mask, train):
        return Inner(self.norm, name="trunk")(x, mask, train)


class Inner(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x, mask, train):
        x = nn.Dense(6)(x)
        if self.norm == "stock":
            return nn.BatchNorm(use_running_average=not train, name="norm")(x)
        if self.norm == "by argument":
            return nn.BatchNorm(name="norm")(x, not train)
        if self.norm == "with mask":
            norm = nn.BatchNorm(use_running_average=not train, name="norm")
            return norm(x, mask=mask[:, None])
        if self.norm == "vmapped":
            lifted = nn.vmap(
                nn.BatchNorm,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                in_axes=1,
                out_axes=1,
            )
            y = lifted(use_running_average=not train, name="norm")(x[..., None])
            return y[..., 0]
        if self.norm == "frozen":
            return nn.BatchNorm(use_running_average=True)(x)
        if self.norm == "masked":
            x, scale, shift = BatchNorm()(x, mask, train)
            return x * scale[None] + shift[None]
        return {"layer": nn.LayerNorm, "group": lambda: nn.GroupNorm(2)}[self.norm]()(x)


STOCK = ("stock", "by argument", "with mask", "vmapped")


@pytest.mark.parametrize("norm", [*STOCK, "frozen", "masked", "layer", "group"])
def test_norms_that_padding_does_not_touch_are_taken(norm):
    encoders = {"a": fc.models.mlp(features=4), "b": Normalised(norm)}
    built = fc.models.classifier(encoders, {"a": (3,), "b": (5,)}, 2)
    apply = jax.jit(built.apply, static_argnums=3)
    params, stats = built.init(jax.random.key(0))
    rows = {"a": normal(5, 3), "b": normal(5, 5, seed=1)}
    padded = {m: jnp.concatenate([x, 9 + x[:2]]) for m, x in rows.items()}

    def logits(inputs):
        n = len(inputs["a"])
        batch = fc.Batch(
            inputs,
            labels=jnp.zeros(n, jnp.int32),
            valid=(jnp.arange(n) < 5).astype(jnp.float32),
            available=jnp.ones((n, 2)),
            positions=jnp.arange(n),
        )
        return apply(params, stats, batch, True)[0].logits[:5]

    np.testing.assert_allclose(logits(padded), logits(rows), rtol=1e-5, atol=1e-5)
