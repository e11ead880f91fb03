"""The convolution and its gradients against lax's own; what it compiles to."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.assembly import build_federation
from fedcmi_jax.models.convolution import CHANNELS_LAST, convolution

SIGNALS = ("NWC", "WIO", "NWC")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def with_gradients(conv, x, w, dy):
    y, vjp = jax.vjp(conv, x, w)
    return y, *vjp(dy.astype(y.dtype))


def assert_near(ours, theirs, tolerance=1e-5):
    """Within 1e-5 of the array's largest value."""
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding", "dilation"),
    [
        ((9, 8), (3, 3), (1, 1), "SAME", (1, 1)),
        ((9, 8), (5, 5), (1, 1), "VALID", (1, 1)),
        ((28, 28), (5, 5), (1, 1), [(2, 2), (2, 2)], (1, 1)),
        ((14, 14), (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1)),
        ((14, 14), (3, 3), (2, 2), "SAME", (1, 1)),
        ((15, 12), (7, 7), (2, 2), [(3, 3), (3, 3)], (1, 1)),
        ((8, 7), (1, 1), (2, 2), "VALID", (1, 1)),  # a shortcut
        ((8, 7), (1, 1), (1, 1), "SAME", (1, 1)),
        ((11, 10), (3, 2), (3, 1), [(0, 2), (1, 0)], (1, 1)),  # a rest of two rows
        ((6, 9), (2, 4), (1, 2), [(4, 3), (5, 0)], (1, 1)),  # wider than the kernel
        ((8, 9), (3, 3), (2, 1), [(-1, 0), (0, -2)], (1, 1)),
        ((12, 11), (3, 3), (1, 1), "SAME", (2, 3)),
        ((12, 11), (3, 2), (2, 3), [(2, 1), (0, 3)], (2, 1)),
        ((3, 3), (5, 5), (1, 1), [(1, 1), (1, 1)], (1, 1)),
        ((12,), (5,), (1,), "SAME", (1,)),
        ((13,), (4,), (3,), [(5, 1)], (2,)),
    ],
)
def test_equals_lax_with_its_gradients(size, kernel, strides, padding, dilation):
    check_gradients(size, kernel, strides, padding, dilation, (2, 20))


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "channels"),
    [
        ((9, 10), (3, 3), "SAME", (128, 32)),  # along the second axis
        ((8, 7), (3, 3), [(1, 1), (1, 1)], (64, 96)),
        ((9, 8), (3, 3), "VALID", (32, 33)),
        ((11, 9), (3, 2), [(2, 0), (0, 3)], (128, 128)),
        ((9, 12), (2, 3), [(1, 1), (-1, 0)], (64, 64)),
        ((6, 5), (3, 3), [(3, 4), (0, -2)], (64, 64)),
    ],
)
def test_three_taps_of_many_channels_equal_lax(size, kernel, padding, channels):
    """Half the multiplications: other sums, so rounded otherwise."""
    check_gradients(size, kernel, (1, 1), padding, (1, 1), channels)


def check_gradients(size, kernel, strides, padding, dilation, channels):
    numbers = CHANNELS_LAST if len(size) == 2 else SIGNALS
    x, w = draw(3, *size, channels[0]), draw(*kernel, *channels, seed=1)

    def run(conv, dtype):
        call = functools.partial(
            conv,
            window_strides=strides,
            padding=padding,
            rhs_dilation=dilation,
            dimension_numbers=numbers,
        )
        args = (x.astype(dtype), w.astype(dtype))
        dy = draw(*jax.eval_shape(call, *args).shape, seed=2).astype(dtype)
        return jax.jit(functools.partial(with_gradients, call))(*args, dy)

    ours = run(convolution, np.float32)
    with jax.enable_x64(True):
        theirs = run(jax.lax.conv_general_dilated, np.float64)
    assert_near(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 2},
        {"lhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"padding": "VALID", "rhs_dilation": (9, 9)},  # no output at all
    ],
)
def test_what_is_left_to_lax(options):
    channels_last = options.get("dimension_numbers") is None
    x = draw(2, 6, 6, 4) if channels_last else draw(2, 4, 6, 6)
    groups = options.get("feature_group_count", 1)
    w = draw(3, 3, 4 // groups, 6) if channels_last else draw(6, 4, 3, 3)
    defaults = {
        "window_strides": (1, 1),
        "padding": "SAME",
        "dimension_numbers": CHANNELS_LAST,
    }
    x, w = jnp.float32(x), jnp.float32(w)
    ours, theirs = (
        functools.partial(conv, **(defaults | options))
        for conv in (convolution, jax.lax.conv_general_dilated)
    )
    dy = jnp.ones(theirs(x, w).shape)
    jax.tree.map(
        np.testing.assert_array_equal,
        with_gradients(ours, x, w, dy),
        with_gradients(theirs, x, w, dy),
    )


same = functools.partial(
    convolution, window_strides=(1, 1), padding="SAME", dimension_numbers=CHANNELS_LAST
)


@pytest.mark.parametrize("shared", [None, 0, 1])
def test_mapped_over_clients_equals_one_at_a_time(shared):
    axes = [None if i == shared else 0 for i in range(2)]
    args = (draw(3, 2, 6, 5, 2), draw(3, 3, 3, 2, 4, seed=1))
    args = [jnp.float32(a if i != shared else a[0]) for i, a in enumerate(args)]

    def one(x, w):
        return with_gradients(same, x, w, jnp.ones((2, 6, 5, 4)))

    together = jax.jit(jax.vmap(one, axes))(*args)
    alone = jax.jit(one)
    for i in range(3):
        own = [a if axis is None else a[i] for a, axis in zip(args, axes, strict=True)]
        assert_near([a[i] for a in together], alone(*own))


def test_mapped_over_seeds_and_clients():
    x, w = jnp.float32(draw(2, 3, 1, 6, 5, 2)), jnp.float32(draw(2, 3, 3, 3, 2, 4))
    nested = jax.jit(jax.vmap(jax.vmap(same)))(x, w)
    assert_near([nested[1, 2]], [same(x[1, 2], w[1, 2])])


def test_the_gradient_nobody_asks_for_is_not_computed():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 32))
    program = jax.jit(jax.grad(lambda w: (same(x, w) ** 2).sum())).lower(w).compile()
    text = program.as_text()
    assert text.count(" convolution(") == 2  # forward, dw
    # YNNPACK is slow at dw: the forward pass at most may be its.
    assert text.count('"__ynn_fusion"') <= 1


def slow_in_loops(program):
    """Convolutions of a compiled program that XLA:CPU runs by a naive loop.

    Its fast kernels take channels-last arrays without groups and a kernel that is not
    reversed; a pass that rewrites others does not see the bodies of loops.
    """
    return [
        line.strip()
        for line in program.as_text().splitlines()
        if " convolution(" in line
        and (
            not re.search(r"dim_labels=(b01f_01io->b01f|b0f_0io->b0f)(,|$)", line)
            or "group_count" in line
            or "rhs_reversal" in line
        )
    ]


class Net(nn.Module):
    """A user's encoder with convolutions of images and of signals."""

    conv: Any

    @nn.compact
    def __call__(self, x, mask, train):
        x = nn.relu(self.conv(20, (3, 2), strides=2, padding="VALID")(x))
        return self.conv(5, (3,), kernel_dilation=2)(x.reshape(len(x), -1, 20)).mean(1)


def training_loop(conv, clients):
    """Steps of gradient descent on that net, of clients mapped together."""
    net, one = Net(conv), jax.ShapeDtypeStruct((3, 8, 7, 2), jnp.float32)

    def loss(params, x):
        return (net.apply(params, x, jnp.ones(3), True) ** 2).sum()

    def train(params, x):
        def step(_, params):
            return jax.tree.map(jnp.subtract, params, jax.grad(loss)(params, x))

        return jax.lax.fori_loop(0, 9, step, params)

    params = jax.eval_shape(
        lambda x: net.init(jax.random.key(0), x, jnp.ones(3), True), one
    )
    args = params, one
    if clients > 1:
        train = jax.vmap(train)
        args = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((clients, *a.shape), a.dtype), args
        )
    return jax.jit(train).lower(*args).compile()


@pytest.mark.parametrize("clients", [1, 2])
def test_training_has_no_convolution_that_is_slow_in_loops(clients):
    assert slow_in_loops(training_loop(nn.Conv, clients)) != []
    assert slow_in_loops(training_loop(fc.models.Conv, clients)) == []


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_a_round_has_no_convolution_that_is_slow_in_loops(chunk_size):
    """FedCMI with its teacher pass, on the convolutional net of the reference code.

    Images larger than the last kernel, or XLA exchanges the two.
    """
    shapes = {"zeta": (16, 16, 3), "alpha": (16, 16, 1)}
    rng = np.random.default_rng(0)

    def split(n):
        inputs = {m: np.float32(rng.random((n, *s))) for m, s in shapes.items()}
        return fc.data.Split(inputs, rng.integers(0, 2, n, np.int32))

    data = fc.data.Dataset("random", tuple(shapes), ("0", "1"), split(6), split(1))
    parts = fc.partition.Partition(np.arange(6), np.array([4, 2]))
    federation = build_federation(data, parts)
    encoders = {m: fc.models.convnet(features=4) for m in shapes}
    problem = fc.build_algorithm(
        fc.methods.fedcmi(warmup_rounds=0),
        fc.models.two_projector(encoders, shapes, 2, width=4),
        clients_per_round=2,
        local=fc.LocalTraining(epochs=2, batch_size=2, learning_rate=0.1),
        chunk_size=chunk_size,
    )
    state = jax.eval_shape(problem.init, jax.random.key(0), federation)
    program = jax.jit(problem.round).lower(state, federation).compile()
    assert " convolution(" in program.as_text()
    assert slow_in_loops(program) == []
