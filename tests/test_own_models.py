"""Anybody's modules as encoders and fusions, own losses, metrics and models."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedcmi_jax as fc
from fedcmi_jax import testing
from fedcmi_jax.local import task_loss
from fedcmi_jax.methods._samples import cross_entropies
from fedcmi_jax.models.adapters import from_linen, from_nnx
from fedcmi_jax.models.whole import complete
from fedcmi_jax.placement import client_mesh, replicate
from fedcmi_jax.streaming import CohortStream, build_skeleton
from fedcmi_jax.testing.problem import (
    FAST_COMPILE,
    MODALITIES,
    algorithm,
    all_equal,
    assert_close,
    assert_equal,
    federation,
    rounds,
)

pytestmark = pytest.mark.up_to_rounding
SHAPES = {m: (6,) for m in MODALITIES}


class Convolutional(nn.Module):
    """Stock layers only."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3,))(x[..., None])
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dense(8)(nn.gelu(x).mean(1))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embedding = nnx.Linear(1, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        h = self.embedding(x[..., None])
        h = h + self.dropout(self.attention(h))
        for layer in self.layers:
            h = h + nnx.gelu(layer(h))  # smooth: no rounding at a kink
        return self.norm(h).mean(1)


@functools.cache
def own_model():
    encoders = {"zeta": Convolutional(), "alpha": from_nnx(Transformer)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the stock convolution
        return fc.models.two_projector(encoders, SHAPES, 4, width=4)


def batch_of(inputs, valid, key=None):
    n = len(valid)
    ones = jnp.ones((n, len(inputs)))
    valid = jnp.asarray(valid, jnp.float32)
    return fc.Batch(
        inputs, jnp.arange(n, dtype=jnp.int32) % 4, valid, ones, jnp.arange(n), key
    )


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def trained(chunk_size, devices=None):
    mesh = devices and client_mesh(devices)
    # At rate 0.1 two rounds grow rounding to 1e-2.
    local = fc.LocalTraining(epochs=2, batch_size=4, learning_rate=0.01)
    options = {"chunk_size": chunk_size, "mesh": mesh, "local": local}
    method = fc.methods.fedcmi()
    fed = federation() if mesh is None else replicate(federation(), mesh)
    return rounds(algorithm(method, own_model(), **options), fed)


@pytest.mark.slow
def test_a_linen_cnn_and_an_nnx_transformer_train_the_same_in_any_chunk():
    one, info = trained(1)
    four, _ = trained(4)
    assert_close(one, four)
    assert int(info.rejected) == 0
    start = own_model().init(jax.random.key(0))
    for m in MODALITIES:
        old, new = start[1]["encoder"][m], one.batch_stats["encoder"][m]
        assert (new["norm"]["mean"] != old["norm"]["mean"]).all()


@pytest.mark.slow
def test_and_on_two_devices():
    one, two = (state._replace(memory=()) for state, _ in (trained(1), trained(1, 2)))
    assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_and_conform():
    case = testing.Case(fc.methods.fedavg(), own_model())
    for name in (
        "a_modality_nobody_has_stays",
        "what_a_sample_lacks_has_no_effect",
        "resumed_is_the_same_to_the_bit",
        "a_poisoned_client_is_rejected",
    ):
        testing.CHECKS[name](case)


@pytest.mark.parametrize("train", [True, False])
def test_padding_has_no_effect_exactly(train):
    net, key = own_model(), jax.random.key(7) if train else None
    params, stats = net.init(jax.random.key(1))
    valid = [1, 1, 1, 0, 0]

    def loss(params, inputs):
        outputs, new = net.apply(params, stats, batch_of(inputs, valid, key), train)
        return (outputs.logits[:3] ** 2).sum(), (outputs.logits[:3], new)

    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
    inputs = {m: normal(5, 6, seed=i) for i, m in enumerate(MODALITIES)}
    other = {m: x.at[3:].set(1e3) for m, x in inputs.items()}
    a, b = step(params, inputs), step(params, other)
    assert_equal(a, b)
    assert all_equal(a[1][1], stats) != train


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_stock_batch_norm_counts_real_rows_and_nobody_is_nothing(kind):
    if kind == "linen":
        layer = from_linen(nn.BatchNorm(momentum=0.75))
    else:
        layer = from_nnx(lambda rngs: nnx.BatchNorm(1, momentum=0.75, rngs=rngs))
    x = jnp.array([[1.0], [3.0], [50.0]])
    params, stats = layer.init(jax.random.key(0), x, jnp.ones(3))

    def run(mask):
        return layer.apply(params, stats, x, jnp.array(mask), True, jax.random.key(0))

    y, new = run([1.0, 1.0, 0.0])
    np.testing.assert_allclose(y[:2, 0], [-1.0, 1.0], rtol=1e-4)
    np.testing.assert_allclose(new["mean"], [0.5], rtol=1e-6)  # 0.75 0 + 0.25 2
    np.testing.assert_allclose(new["var"], [1.0], rtol=1e-6)  # 0.75 1 + 0.25 1
    y, new = run([0.0, 0.0, 0.0])
    assert jnp.isfinite(y).all()
    assert_equal(new, stats)


@functools.cache
def draws(chunk_size, num_rounds=2):
    """[N, steps] of the last round: a number drawn from each step's model key."""

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            return nn.Dropout(0.5)(nn.Dense(3)(x), deterministic=deterministic)

    net = fc.models.classifier({m: Noisy() for m in MODALITIES}, SHAPES, 4)
    assert net.needs_key

    def update(client, grads, step, context):
        done, seen = context
        draw = jax.random.uniform(step.batch.key)
        return grads, (done + 1, seen.at[done].set(draw))

    method = fc.Method(
        init=lambda model, params, n: ((), jnp.zeros(6)),
        begin=lambda client, key: ((jnp.zeros((), jnp.int32), jnp.zeros(6)), {}),
        update=update,
        finish=lambda client, after, context: ((), context[1]),
    )
    state, _ = rounds(algorithm(method, net, chunk_size=chunk_size), federation())
    return np.asarray(state.memory)


@pytest.mark.slow
def test_random_numbers_are_of_seed_round_client_and_step_alone():
    one, four = draws(1), draws(4)
    np.testing.assert_array_equal(one, four)
    taken = one[one > 0]
    steps = sum(2 * -(-n // 4) for n in testing.problem.SIZES)
    assert len(np.unique(taken)) == len(taken) == steps


def test_a_model_without_random_numbers_gets_no_key():
    net = testing.problem.model("classifier")
    batch = batch_of({m: normal(2, 6) for m in MODALITIES}, [1, 1])
    assert not net.needs_key
    assert fc.local.with_key(net, batch, jax.random.key(0)) is batch
    own = own_model()
    with pytest.raises(ValueError, match=r"batch: has no key, .* give batch._replace"):
        own.apply(*own.init(jax.random.key(0)), batch, True)


class Asked(nn.Module):
    """Says how it was called."""

    spelling: str

    @nn.compact
    def __call__(self, x):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("spelling", "in_training"),
    [
        ("train", 1),
        ("training", 1),
        ("is_training", 1),
        ("deterministic", 0),
        ("use_running_average", 0),
    ],
)
def test_training_is_spelled_as_flax_does(spelling, in_training):
    names = {}
    exec(f"def call(self, x, *, {spelling}, mask): return x * {spelling} * mask", names)
    module = type("Asked", (nn.Module,), {"__call__": names["call"]})()
    layer = from_linen(module)
    for train in (True, False):
        y, _ = layer.apply({}, {}, jnp.ones(2), jnp.array([1.0, 0.0]), train, None)
        assert y.tolist() == [float(train == in_training), 0.0]


def test_an_nnx_module_keeps_its_parameters_and_a_factory_draws_them():
    module = nnx.Linear(6, 3, rngs=nnx.Rngs(5))
    kept, drawn = from_nnx(module), from_nnx(lambda rngs: nnx.Linear(6, 3, rngs=rngs))
    a, b = (layer.init(jax.random.key(0), None, None)[0] for layer in (kept, drawn))
    np.testing.assert_array_equal(a["kernel"], module.kernel[...])
    assert (a["kernel"] != b["kernel"]).any()
    y, _ = kept.apply(b, {}, jnp.ones((1, 6)), jnp.ones(1), True, None)
    np.testing.assert_allclose(y[0], b["kernel"].sum(0), rtol=1e-5)
    np.testing.assert_array_equal(a["kernel"], module.kernel[...])


def test_rngs_are_passed_where_nnx_takes_them():
    class Noise(nnx.Module):
        def __call__(self, x, train, rngs):
            return x + nnx.Dropout(0.5)(x, deterministic=not train, rngs=rngs)

    layer, x = from_nnx(Noise()), jnp.ones((64, 1))
    y = layer.apply({}, {}, x, jnp.ones(64), True, jax.random.key(0))[0]
    z = layer.apply({}, {}, x, jnp.ones(64), True, jax.random.key(1))[0]
    assert set(np.unique(y)) == {1.0, 3.0}
    assert (y != z).any()
    calm = layer.apply({}, {}, x, jnp.ones(64), False, None)[0]
    assert (calm == 2.0).all()


def test_stock_convolutions_are_named_with_their_faster_form():
    class Other(nnx.Module):
        def __init__(self, rngs):
            self.filters = nnx.Conv(1, 2, (3,), rngs=rngs)

        def __call__(self, x):
            return self.filters(x[..., None]).mean(1)

    def build(encoder):
        encoders = {"zeta": encoder, "alpha": fc.models.mlp(features=4)}
        return fc.models.classifier(encoders, SHAPES, 4)

    with pytest.warns(UserWarning, match=r"'zeta': layer Conv_0: .*models\.Conv"):
        build(Convolutional())
    with pytest.warns(UserWarning, match=r"'zeta': layer filters: .*\.convolution"):
        build(from_nnx(Other))


def module(call, **annotations):
    return type("Own", (nn.Module,), {"__call__": nn.compact(call)} | annotations)()


def centred(self, x):
    return x - x.mean(0, keepdims=True)


def remembers(self, x, mask):
    mean = self.variable("batch_stats", "mean", jnp.zeros, (6,))
    if not self.is_initializing():
        mean.value = (x * mask[:, None]).sum(0) / mask.sum()
    return x


def caches(self, x):
    self.variable("cache", "seen", jnp.zeros, (6,))
    return x


def distributed(self, x, train):
    return nn.BatchNorm(not train, axis_name="batch")(x)


class Cached(nnx.Module):
    def __init__(self):
        self.seen = nnx.Cache(jnp.zeros(6))

    def __call__(self, x):
        return x


REFUSED = {
    "mixes": (module(centred), "depend on a padding row.*GroupNorm"),
    "divides by nobody": (module(remembers), "not finite after a batch without"),
    "frames": (module(lambda self, x: x[:, None]), r"shape \(3, 1, 6\); give \[B, F\]"),
    "two outputs": (module(lambda self, x: (x, x)), "output is a tuple; give one"),
    "a number a sample": (module(lambda self, x: x[:, 0]), r"shape \(3,\); give"),
    "cache": (module(caches), r"variables of \['cache'\]; keep them in"),
    "devices": (module(distributed), "axis_name='batch'.*leave axis_name out"),
    "always draws": (
        module(lambda self, x: nn.Dropout(0.5)(x, deterministic=False)),
        "draws random numbers in evaluation; let its __call__ take 'train'",
    ),
    "argument": (module(lambda self, x, lengths: x), "needs 'lengths', which nobody"),
    "a class": (nn.Dense, "the class 'Dense' is no module"),
    "a function": (
        jnp.tanh,
        "'PjitFunction' is no module; give a flax linen or nnx module",
    ),
    "nnx cache": (Cached(), "holds seen, which is no nnx.Param"),
    "no factory": (None, "object 'NoneType' is no module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name):
    encoder, message = REFUSED[name]
    encoders = {"zeta": encoder, "alpha": fc.models.mlp()}
    with pytest.raises(ValueError, match=f"modality 'zeta': .*{message}") as error:
        fc.models.classifier(encoders, SHAPES, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["classifier", "two_projector"])
def test_a_fusion_of_ones_own(kind):
    class Product(nn.Module):
        @nn.compact
        def __call__(self, parts, train):
            x = nn.Dropout(0.5, deterministic=not train)(parts[0] * parts[1])
            return nn.Dense(4)(x)

    encoders = {m: fc.models.mlp(features=8) for m in MODALITIES}
    build = getattr(fc.models, kind)
    net = build(encoders, SHAPES, 4, fusion=Product())
    params, stats = net.init(jax.random.key(0))
    assert net.needs_key
    assert net.shares is None
    inputs = {m: normal(3, 6, seed=i) for i, m in enumerate(MODALITIES)}
    outputs, _ = net.apply(params, stats, batch_of(inputs, [1, 1, 1]), False)
    dense = params["fusion"]["Dense_0"]
    x = outputs.parts["zeta"] * outputs.parts["alpha"]
    expected = x @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)
    for fusion, message in (
        (module(lambda self, p: nn.Dense(3)(p[0])), "3 logits, the data has 4 classes"),
        (module(lambda self, p: nn.BatchNorm(True)(p[0])[:, :4]), "batch statistics"),
    ):
        with pytest.raises(ValueError, match=f"^fusion: .*{message}"):
            build(encoders, SHAPES, 4, fusion=fusion)


def test_what_is_no_dict_and_no_factory():
    with pytest.raises(ValueError, match="encoders: is of type Dense; give a dict"):
        fc.models.classifier(nn.Dense(3), SHAPES, 4)

    class Named(nnx.Module):
        def __init__(self, *, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)

    for factory in (Named, lambda: Named(rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=r"rngs alone; give factory\(rngs\)"):
            from_nnx(factory)
    from_nnx(lambda rngs: Named(rngs=rngs))


def test_an_error_of_the_modules_own_says_whose_it_is():
    encoders = {"zeta": module(lambda self, x: x @ x), "alpha": fc.models.mlp()}
    with pytest.raises(TypeError) as error:
        fc.models.classifier(encoders, SHAPES, 4)
    assert "modality 'zeta': raised by the module" in error.value.__notes__[-1]


@pytest.mark.slow
def test_mixed_precision_draws_and_masks_as_well():
    short = fc.models.mixed_precision(own_model())
    params, stats = jax.jit(short.init)(jax.random.key(0))
    inputs = {m: normal(3, 6, seed=i) for i, m in enumerate(MODALITIES)}
    batch = batch_of(inputs, [1, 1, 0], jax.random.key(1))
    outputs, new = short.apply(params, stats, batch, True)
    assert outputs.logits.dtype == jnp.float32
    assert jnp.isfinite(outputs.logits).all()
    expected = own_model().apply(params, stats, batch, True)[1]
    assert_close(new, expected, rtol=0.05, atol=0.01)


class Words(nn.Module):
    """Mean embedding of the words that the mask keeps, the first length of them."""

    @nn.compact
    def __call__(self, x):
        h = nn.Embed(11, 5)(x["ids"])  # of integers only
        real = x["mask"][..., None]
        return (h * real).sum(1) / jnp.maximum(real.sum(1), 1.0)


@functools.cache
def texts():
    rng = np.random.default_rng(0)

    def split(n):
        ids = rng.integers(0, 11, (n, 4))
        text = {"ids": ids, "mask": (ids > 2).astype(np.float64)}
        return {"text": text, "image": rng.normal(size=(n, 3))}, rng.integers(0, 2, n)

    return fc.data.from_arrays(*split(24), *split(10))


def test_a_modality_of_several_arrays_trains_streams_and_is_evaluated():
    data = texts()
    assert data.shapes["text"] == {"ids": (4,), "mask": (4,)}
    encoders = {"text": Words(), "image": fc.models.mlp(features=4)}
    net = fc.models.classifier(encoders, data.shapes, 2)
    parts = fc.partition.iid(data.train, 3, np.random.default_rng(0))
    fed = fc.build_federation(data, parts)
    problem = algorithm(fc.methods.fedavg(), net, clients_per_round=2)
    state, _ = rounds(problem, fed, 1)
    skeleton = build_skeleton(data, parts, np.ones((3, 2), bool))
    stream = CohortStream(data, parts, skeleton, jax.random.key(0), 2, prefetch=False)
    assert_close(state.params, rounds(problem, stream.federation(0), 1)[0].params)
    evaluation = fc.build_evaluator(net, data.test, fed)(
        state.params, {"encoder": {m: {} for m in data.modalities}}
    )
    assert float(evaluation.tables["acc_text_zero"].sum()) == 10
    lacking = dict(data.test.inputs, text={"ids": data.test.inputs["text"]["ids"]})
    with pytest.raises(ValueError, match=r"test: has arrays .*; give both the same"):
        fc.data.from_arrays(
            data.train.inputs, data.train.labels, lacking, data.test.labels
        )
    short = {"ids": np.zeros((23, 4), int), "mask": np.zeros((24, 4))}
    with pytest.raises(ValueError, match="modality 'text', 'ids': 23 samples for 24"):
        fc.data.from_arrays(
            dict(data.train.inputs, text=short),
            data.train.labels,
            data.test.inputs,
            data.test.labels,
        )


def smoothed(logits, labels):
    """0.9 of the label, 0.1 of all classes alike."""
    even = -jax.nn.log_softmax(logits).mean(-1)
    return 0.9 * cross_entropies(logits, labels) + 0.1 * even


def test_the_loss_is_the_models_if_it_has_one():
    net = testing.problem.model("classifier")._replace(loss=smoothed)
    outputs = fc.Outputs(jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]])))
    batch = fc.Batch({}, jnp.zeros(2, int), jnp.array([1.0, 0.0]), None, None)
    total, count = task_loss(net, outputs, batch)
    label, other = -np.log(0.25), -np.log(0.75)
    assert total == pytest.approx(0.9 * label + 0.05 * (label + other))
    assert count == 1.0
    with pytest.raises(ValueError, match=r"loss: gives shape \(\) .* \[B\]"):
        complete(net._replace(loss=lambda logits, labels: logits.mean()))


def test_a_whole_architecture_needs_four_fields():
    def init(key):
        made = {m: jax.random.normal(key, (6, 4)) for m in MODALITIES}
        return {"weights": made, "bias": jnp.zeros(4)}, {}

    def apply(params, stats, batch, train):
        terms = [
            (batch.inputs[m] @ params["weights"][m]) * batch.available[:, i, None]
            for i, m in enumerate(MODALITIES)
        ]
        return fc.Outputs(sum(terms) + params["bias"][None]), stats

    net = fc.Model(MODALITIES, 4, init=init, apply=apply)
    problem = algorithm(fc.methods.fedavg(), net)
    nobody = [[0, 1]] * 5
    state, _ = rounds(problem, federation(nobody), 1)
    start = problem.init(jax.random.key(0), federation(nobody))
    assert_equal(state.params["weights"]["zeta"], start.params["weights"]["zeta"])
    assert (state.params["bias"] != start.params["bias"]).any()
    data = testing.problem.dataset()

    def hits(logits, labels, valid):
        return ((logits.argmax(-1) == labels) * valid).sum(), valid.sum()

    found = [
        fc.evaluation.summarise(
            fc.build_evaluator(
                net, data.test, None, batch_size=n, stream=n == 7, metrics={"hit": hits}
            )(state.params, {})
        )
        for n in (40, 7)
    ]
    np.testing.assert_equal(*found)
    assert found[0]["hit"] == pytest.approx(found[0]["acc"])
    assert not [name for name in found[0] if name.endswith("_zero")]
    with pytest.raises(ValueError, match="metrics: 'acc' is taken"):
        fc.build_evaluator(net, data.test, None, metrics={"acc": hits})
    for metric in (lambda z, y, v: 1.0, lambda z, y, v: (z, v), lambda z, y, v: None):
        with pytest.raises(ValueError, match=r"metrics: 'm' gives .*; give a pair"):
            fc.build_evaluator(net, data.test, None, metrics={"m": metric})
    for method in (fc.methods.moon(), fc.methods.fedproto(), fc.methods.fedpmr()):
        with pytest.raises(ValueError, match="looks at features, and Model.widths is"):
            algorithm(method, net)
