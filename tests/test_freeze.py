"""Frozen blocks: they keep their bits, and nothing is computed or sent for them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax import models
from fedcmi_jax.experiment.traffic import traffic
from fedcmi_jax.methods._samples import cross_entropies
from fedcmi_jax.models.layers import MappedBatchNorm
from fedcmi_jax.testing import problem
from fedcmi_jax.testing.problem import algorithm, all_equal, federation, rounds
from fedcmi_jax.types import Batch

SHAPES = {"zeta": (6,), "alpha": (6,)}


def same_bits(a, b):
    """To the bit: 0 and -0 differ."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def batch(size=4):
    keys = jax.random.split(jax.random.key(3), 2)
    inputs = {m: jax.random.normal(k, (size, 6)) for m, k in zip(SHAPES, keys)}  # noqa: B905
    ones = jnp.ones(size)
    labels = jnp.arange(size, dtype=jnp.int32) % 4
    return Batch(inputs, labels, ones, jnp.ones((size, 2)), jnp.arange(size))


def negative_zero(model):
    """The model, with a -0 in a weight, which is lost if anything is added to it."""

    def init(key):
        params, stats = model.init(key)
        layer = params["encoder"]["zeta"]["dense0"]
        layer["kernel"] = layer["kernel"].at[0, 0].set(-0.0)
        layer["bias"] = layer["bias"].at[0].set(-0.0)
        return params, stats

    return model._replace(init=init)


def model_of(method, patterns=("encoder/*",)):
    kind = "two_projector" if method.needs_projectors else "classifier"
    return models.frozen(negative_zero(problem.model(kind)), patterns)


def test_one_pattern_may_be_a_string():
    one, many = (
        models.frozen(problem.model("classifier"), patterns).frozen
        for patterns in ("encoder/*", ["encoder/*"])
    )
    assert one == many
    assert one.params == {"encoder": True, "fusion": False}


def two_rounds(method, model, **options):
    made = algorithm(method, model, **options)
    start = made.init(jax.random.key(0), federation())
    state, info = rounds(made, federation())
    assert int(info.rejected) == 0
    return start, state, made.deploy(state, federation())


def test_parts_of_blocks_and_optimizer_state_rest():
    """A whole encoder and a layer's bias, under weight decay and two optimizers."""
    model = model_of(fc.methods.fedavg(), ["encoder/zeta", "encoder/*/dense0/bias"])
    start, state, _ = two_rounds(
        fc.methods.fedavg(), model, server_optimizer=optax.adam(0.01)
    )
    before, after = start.params["encoder"], state.params["encoder"]
    assert same_bits(after["zeta"], before["zeta"])
    assert same_bits(
        after["alpha"]["dense0"]["bias"], before["alpha"]["dense0"]["bias"]
    )
    moved = after["alpha"]["dense0"]["kernel"] != before["alpha"]["dense0"]["kernel"]
    assert moved.all()
    sizes = {x.shape for x in jax.tree.leaves(state.server_optimizer)}
    assert sizes == {(), (6, 8), (4,), (16, 4)}  # no bias [8]; the count; the fusion


def test_a_frozen_block_has_no_control_variate():
    method = fc.methods.scaffold()
    start, state, _ = two_rounds(method, model_of(method))
    assert same_bits(state.params["encoder"], start.params["encoder"])
    assert all((x == 0).all() for x in jax.tree.leaves(state.shared["encoder"]))
    assert {x.shape for x in jax.tree.leaves(state.memory["encoder"])} == {(5,)}
    assert all((x != 0).any() for x in jax.tree.leaves(state.memory["fusion"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(fc.methods.REGISTRY) - {"scaffold"}))
def test_a_frozen_encoder_keeps_its_bits_under_every_method(name):
    method = fc.methods.REGISTRY[name]()
    start, state, deployed = two_rounds(method, model_of(method))
    assert same_bits(state.params["encoder"], start.params["encoder"])
    assert same_bits(deployed["encoder"], start.params["encoder"])
    for kind in set(start.params) - {"encoder"}:
        assert not all_equal(deployed[kind], start.params[kind]), kind


@pytest.mark.slow
def test_a_frozen_personal_block_is_what_it_was():
    start, state, deployed = two_rounds(
        fc.methods.fedper(), model_of(fc.methods.fedper(), ["fusion"])
    )
    assert same_bits(deployed["fusion"], start.params["fusion"])
    assert same_bits(state.personal, start.personal)
    assert not all_equal(state.params["encoder"], start.params["encoder"])


@pytest.mark.slow
def test_chunks_change_nothing():
    method = fc.methods.fedavg()
    alone = two_rounds(method, model_of(method))[1]
    pairs = two_rounds(method, model_of(method), chunk_size=2)[1]
    problem.assert_close(pairs, alone)


def flops(model, what="flops"):
    params, stats = model.init(jax.random.key(0))

    def loss(params):
        outputs, _ = model.apply(params, stats, batch(), True)
        return cross_entropies(outputs.logits, batch().labels).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled.cost_analysis()["flops"]


def test_no_gradient_of_a_frozen_encoder_is_computed():
    """It saves two products x^T dh [6, 4] [4, 8] and one dz W^T [4, 4] [4, 16]."""
    plain = problem.model("classifier")
    saved = flops(plain) - flops(models.frozen(plain, ["encoder/*"]))
    assert saved >= 2 * (2 * 6 * 4 * 8) + 2 * 4 * 4 * 16


class Normed(nn.Module):
    """A dense layer behind BatchNorm."""

    @nn.compact
    def __call__(self, x, mask, train):
        x = MappedBatchNorm(name="norm")(x, mask, train)
        return nn.relu(nn.Dense(8, name="dense")(x))


@functools.cache
def normed():
    return models.classifier({m: Normed() for m in SHAPES}, SHAPES, 4)


def statistics(patterns):
    """In training: outputs and new statistics; and what they were."""
    model = models.frozen(normed(), patterns)
    params, stats = model.init(jax.random.key(0))
    outputs, new = model.apply(params, stats, batch(), True)
    evaluated, _ = normed().apply(params, stats, batch(), False)
    return outputs.features, evaluated.features, new["encoder"], stats["encoder"]


def test_a_frozen_encoder_runs_as_in_evaluation():
    features, evaluated, new, old = statistics(["encoder/alpha"])
    assert same_bits(features["alpha"], evaluated["alpha"])
    assert same_bits(new["alpha"], old["alpha"])
    assert not all_equal(features["zeta"], evaluated["zeta"])
    assert not all_equal(new["zeta"], old["zeta"])


def test_statistics_rest_with_their_own_layer():
    for pattern, rests in (("norm", True), ("norm/bias", False), ("dense", False)):
        _, _, new, old = statistics([f"encoder/zeta/{pattern}"])
        assert same_bits(new["zeta"], old["zeta"]) == rests, pattern


@pytest.mark.slow
def test_statistics_of_a_trained_part_are_averaged():
    """As they are with nothing frozen, in the first round, where nothing else moved."""
    part = models.frozen(normed(), ["encoder/zeta/norm/bias"])
    found = [
        rounds(algorithm(fc.methods.fedavg(), model), federation(), 1)[0].batch_stats
        for model in (part, models.frozen(normed(), ["encoder"]), normed())
    ]
    start = normed().init(jax.random.key(0))[1]
    problem.assert_close(found[0]["encoder"]["zeta"], found[2]["encoder"]["zeta"])
    assert same_bits(found[1], start)


def test_adapters_start_as_the_model_and_add_their_product():
    plain = problem.model("classifier")
    model = models.lora(plain, rank=2, alpha=6.0)
    key = jax.random.key(0)
    params, stats = model.init(key)
    base, _ = plain.init(key)
    logits = model.apply(params, stats, batch(), True)[0].logits
    assert same_bits({k: params[k] for k in base}, base)
    assert same_bits(logits, plain.apply(base, stats, batch(), True)[0].logits)
    layer = params["lora"]["alpha"]["dense0"]
    layer["a"], layer["b"] = jnp.ones((6, 2)), jnp.full((2, 8), 0.5)
    base["encoder"]["alpha"]["dense0"]["kernel"] += 3.0  # 6 / 2 of 2 x 1 x 0.5
    np.testing.assert_allclose(
        model.apply(params, stats, batch(), True)[0].logits,
        plain.apply(base, stats, batch(), True)[0].logits,
        rtol=1e-5,
    )


@pytest.mark.slow
def test_only_adapters_train_and_are_sent():
    model = models.lora(problem.model("classifier"), rank=2)
    start, state, _ = two_rounds(fc.methods.fedavg(), model)
    assert same_bits(state.params["encoder"], start.params["encoder"])
    assert all(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(state.params["lora"]),
            jax.tree.leaves(start.params["lora"]),
            strict=True,
        )
    )


def test_bytes_follow_ownership():
    """float32, rank 2: (6 x 2 + 2 x 8) x 4 bytes at the share of the owners."""
    model = models.lora(problem.model("classifier"), rank=2)
    sent = traffic(fc.methods.scaffold(), model, problem.dataset(), problem.AVAILABLE)
    assert sent.down == {
        "encoder/alpha": 0.0,
        "encoder/zeta": 0.0,
        "fusion": (16 * 4 + 4) * 4.0,
        "lora/alpha": pytest.approx(0.8 * 28 * 4),
        "lora/zeta": pytest.approx(0.8 * 28 * 4),
    }
    weights = {"fusion": 4, "lora/alpha": 0.8 * 4, "lora/zeta": 0.8 * 4}
    for block, size in sent.down.items():
        assert sent.up[block] == pytest.approx(2 * size + weights.get(block, 0)), block


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda m: models.frozen(m, ["encoder/beta"]),
            "freeze: 'encoder/beta' names no block; choose from encoder/alpha, "
            "encoder/zeta, fusion/out, or a layer or an array in one",
        ),
        (
            lambda m: models.frozen(m, ["encoder/*/dense0/*/x"]),
            "freeze: 'encoder/*/dense0/*/x' names no block",
        ),
        (lambda m: models.frozen(m, ["*"]), r"freeze: \* leaves nothing to train"),
        (lambda m: models.lora(m, rank=0), "rank: 0 is below 1; try 4"),
        (lambda m: models.lora(m, alpha=0.0), "alpha: 0.0 is not positive"),
        (
            lambda m: models.lora(m, layers=["encoder/*/dense0/bias"]),
            "layers: encoder/.*bias has no kernel of two axes",
        ),
        (
            lambda m: models.lora(models.frozen(m, ["encoder/*"])),
            "model: has adapters or frozen blocks already",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message.replace("*/", r"\*/")) as error:
        make(problem.model("classifier"))
    assert "\n" not in str(error.value)


def test_no_pattern_is_the_model_itself():
    model = problem.model("classifier")
    assert models.frozen(model, ()) is model
