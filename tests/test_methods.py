"""Hand-worked numbers of the methods FedCMI is compared with."""

import functools
import importlib
import inspect
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax.methods._prototypes import (
    ClassSums,
    Prototypes,
    class_means,
    distance_logits,
    known_or_old,
    prototype_loss,
    pull,
    true_class_scores,
    uploaded,
)
from fedcmi_jax.methods._samples import in_window
from fedcmi_jax.methods.seen import LocalUpdate
from fedcmi_jax.testing.problem import (
    algorithm,
    assert_close,
    assert_equal,
    federation,
    model,
    rounds,
)
from fedcmi_jax.types import Frozen
from fedcmi_jax.uploads import mean_upload, weighted_upload


def module(name):
    """The module of a method; its factory has the same name."""
    return importlib.import_module(f"fedcmi_jax.methods.{name}")


# --- OGM-GE ---------------------------------------------------------------------------


def test_ogm_coefficients_by_hand():
    # rho_a = 3 / 2 > 1: k_a = 1 - tanh(0.5 * 1.5); rho_v = 2 / 3: k_v = 1.
    k = module("fedogm").coefficients(jnp.array([3.0, 2.0]), jnp.ones(2), 0.5)
    np.testing.assert_allclose(k, [1 - math.tanh(0.75), 1.0], rtol=1e-6)


def test_ogm_equal_scores_and_single_modalities_damp_nobody():
    ogm = module("fedogm")
    equal = ogm.coefficients(jnp.array([2.0, 2.0]), jnp.ones(2), 1.0)
    np.testing.assert_array_equal(equal, [1, 1])
    alone = ogm.coefficients(jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0]), 1.0)
    np.testing.assert_array_equal(alone, [1, 1])


def test_ogm_noise_has_the_gradients_unbiased_deviation():
    # Entries 1 and 3: unbiased deviation sqrt(2).
    g = jnp.array([[1.0, 3.0]])
    key = jax.random.key(0)
    expected = math.sqrt(2.0) * jax.random.normal(key, g.shape)
    np.testing.assert_allclose(module("fedogm").noise(key, g), expected, rtol=1e-6)


def test_ogm_changes_encoder_matrices_only():
    net, fed = model("classifier"), federation(np.ones((5, 2), bool))
    ours, theirs = (
        algorithm(m, net, local=fc.LocalTraining(batch_size=16, learning_rate=0.1))
        for m in (fc.methods.fedogm(ge=False), fc.methods.fedavg())
    )
    a, b = (
        jax.jit(p.round)(p.init(jax.random.key(0), fed), fed)[0] for p in (ours, theirs)
    )
    # One step per client, so biases and the fusion had the same gradients.
    assert_equal(a.params["fusion"], b.params["fusion"])
    for m in net.modalities:
        dense = (x.params["encoder"][m]["dense0"] for x in (a, b))
        first, second = dense
        np.testing.assert_array_equal(first["bias"], second["bias"])
    changed = [
        bool(
            (
                a.params["encoder"][m]["dense0"]["kernel"]
                != b.params["encoder"][m]["dense0"]["kernel"]
            ).any()
        )
        for m in net.modalities
    ]
    assert any(changed)


def test_ogm_shares_add_up_to_the_logits():
    for fusion in ("concat", "sum"):
        net = model("classifier", fusion=fusion)
        params, _ = net.init(jax.random.key(0))
        parts = {
            m: jax.random.normal(jax.random.key(i), (3, 8))
            for i, m in enumerate(net.modalities)
        }
        total = sum(net.shares(params, parts).values())
        np.testing.assert_allclose(total, net.fuse(params, parts), rtol=1e-5, atol=1e-6)


# --- PMR and FedProto -----------------------------------------------------------------


def test_prototypes_by_hand():
    # Class 0 has (1, 0) and (3, 0), class 1 has (0, 4), class 2 nobody.
    sums = ClassSums(
        {"a": jnp.array([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])},
        {"a": jnp.array([2.0, 1.0, 0.0])},
    )
    first = class_means(sums)
    np.testing.assert_array_equal(first.means["a"], [[2, 0], [0, 4], [0, 0]])
    np.testing.assert_array_equal(first.known["a"], [1, 1, 0])
    # Next round only class 2 is seen: the others keep their last prototype.
    later = ClassSums(
        {"a": jnp.zeros((3, 2)).at[2].set(6.0)}, {"a": jnp.array([0.0, 0.0, 2.0])}
    )
    second = known_or_old(mean_upload(weighted_upload(uploaded(later))), first)
    np.testing.assert_array_equal(second.means["a"], [[2, 0], [0, 4], [3, 3]])
    np.testing.assert_array_equal(second.known["a"], [1, 1, 1])


def test_distance_logits_and_loss_by_hand():
    # h = (0, 0); prototypes at distance 3 and 4, the third class is unknown.
    means = jnp.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    known = jnp.array([1.0, 1.0, 0.0])
    d = distance_logits(jnp.zeros((2, 2)), means, known)
    np.testing.assert_allclose(d[0], [-3, -4, -1e9], rtol=1e-6)
    loss = prototype_loss(d, jnp.array([0, 2]), known, jnp.ones(2))
    # Sample 0: log(1 + e^-1); sample 1's class is unknown: 0. Mean over both.
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)) / 2, rel=1e-6)


def test_no_gradient_is_nan_at_a_prototype():
    means, known = jnp.zeros((2, 3)), jnp.ones(2)

    def loss(h):
        return prototype_loss(
            distance_logits(h, means, known), jnp.array([0]), known, jnp.ones(1)
        )

    assert bool(jnp.isfinite(jax.grad(loss)(jnp.zeros((1, 3)))).all())


def test_pmr_switch_by_hand():
    has = {"a": jnp.ones(()), "v": jnp.ones(())}

    def coefficients(a, v, kind="switch"):
        values = pull({"a": jnp.array(a), "v": jnp.array(v)}, has, kind)
        return float(values["a"]), float(values["v"])

    assert coefficients(3.0, 2.0) == (0.0, 1.0)
    assert coefficients(2.0, 3.0) == (1.0, 0.0)
    assert coefficients(2.0, 2.0) == (0.0, 0.0)
    # soft: 3 / 2 - 1 = 0.5, and 5 / 1 - 1 is cut to 1.
    assert coefficients(3.0, 2.0, "soft") == (0.0, 0.5)
    assert coefficients(1.0, 5.0, "soft") == (1.0, 0.0)


def test_true_class_scores_by_hand():
    logits = jnp.array([[math.log(3.0), 0.0], [0.0, 0.0], [9.0, 0.0]])
    # 3/4 and 1/2; the third sample does not count.
    score = true_class_scores(logits, jnp.array([0, 1, 1]), jnp.array([1.0, 1.0, 0.0]))
    assert float(score) == pytest.approx(1.25, rel=1e-6)


def test_fedproto_prototypes_are_the_cohorts_class_means():
    net, fed = model("classifier"), federation(np.ones((5, 2), bool))
    problem = algorithm(fc.methods.fedproto(), net)
    state, _ = rounds(problem, fed, 1)
    plain, _ = rounds(algorithm(fc.methods.fedavg(), net), fed, 1)
    assert_close(state.params, plain.params)  # the loss begins in round 1
    prototypes: Prototypes = state.shared
    present = np.bincount(np.asarray(fed.labels), minlength=4) > 0
    for m in net.modalities:
        np.testing.assert_array_equal(prototypes.known[m], present)


def _features(h, labels, valid, round=1, shared=None):
    """A client, outputs and batch of one modality with features h [B, F]."""
    net = _OneModality
    client = fc.methods.Client(
        net, {}, {}, shared, (), _Data(len(h)), jnp.array(round), jnp.array(0.1), 1
    )
    outputs = fc.Outputs(jnp.zeros((len(h), 3)), {"m": h}, {}, {}, {}, {})
    valid = jnp.array(valid)
    batch = fc.Batch({}, jnp.array(labels), valid, valid[:, None], jnp.arange(len(h)))
    return client, outputs, batch


class _OneModality:
    modalities = ("m",)
    num_classes = 3


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # Class 0: batch mean (1, 1), global (1, 0): mean_f = 0.5. Class 1: mean (0, 2),
        # global (0, 0): 2. Class 2 has no global prototype, the last row is padding.
        ("prototype_mse", 0.5 + 2.0),
        # Samples' mean_f: (1 + 0) / 2, (1 + 4) / 2, 4 / 2, and 0 for the unknown class.
        ("sample_mse", (0.5 + 2.5 + 2.0 + 0.0) / 4),
    ],
)
def test_fedproto_forms_by_hand(form, expected):
    means = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    shared = Prototypes({"m": means}, {"m": jnp.array([1.0, 1.0, 0.0])})
    h = jnp.array([[0.0, 0.0], [2.0, 2.0], [0.0, 2.0], [7.0, 7.0], [9.0, 9.0]])
    what = _features(h, [0, 0, 1, 2, 0], [1.0, 1.0, 1.0, 1.0, 0.0], shared=shared)
    method = fc.methods.fedproto(lam=2.0, form=form)
    total, _ = method.loss(*what, ())
    assert float(total) == pytest.approx(2.0 * expected, rel=1e-6)


# --- Rounds in which a method is active -----------------------------------------------


@pytest.mark.parametrize("name", ["fedproto", "fedpmr", "fedogm", "fedagm"])
def test_methods_are_active_to_the_end_unless_told(name):
    factory = fc.methods.REGISTRY[name]
    default = inspect.signature(factory).parameters["last_round"].default
    first = inspect.signature(factory).parameters["first_round"].default
    active = [
        [float(in_window(jnp.array(t), first, last)) for t in (first, 70, 71, 10_000)]
        for last in (default, 70)
    ]
    assert active == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_fedproto_pulls_in_round_500():
    shared = Prototypes({"m": jnp.zeros((3, 2))}, {"m": jnp.ones(3)})
    what = _features(jnp.ones((1, 2)), [0], [1.0], round=500, shared=shared)
    assert float(fc.methods.fedproto(form="sample_mse").loss(*what, ())[0]) == 1.0
    public = fc.methods.fedproto(form="sample_mse", last_round=70)
    assert float(public.loss(*what, ())[0]) == 0.0


# --- AGM ------------------------------------------------------------------------------


@pytest.mark.parametrize(("leaf", "clipped"), [("kernel", True), ("bias", False)])
def test_agm_clips_by_the_fusions_weights_only(leaf, clipped):
    """Entries of 0.5, one of 3 in the fusion's weight or bias."""
    net = model("classifier")
    grads = {
        "encoder": {m: {"kernel": jnp.full((2, 2), 0.5)} for m in net.modalities},
        "fusion": {"out": {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.zeros(2)}},
    }
    layer = grads["fusion"]["out"]
    layer[leaf] = layer[leaf].at[0].set(3.0)
    ones = jnp.ones((1, 2))
    batch = fc.Batch({}, jnp.zeros(1, int), jnp.ones(1), ones, jnp.zeros(1, int))
    client = fc.methods.Client(
        net, {}, {}, (), (), _Data(1, 2), jnp.array(0), jnp.array(0.1), 1
    )
    step = _step(extra=(jnp.zeros(2), jnp.array(0.0)), batch=batch)
    scores = module("fedagm").Scores(jnp.zeros(2), jnp.zeros((), jnp.int32))
    changed, _ = fc.methods.fedagm().update(client, grads, step, scores)
    if clipped:
        assert float(optax.tree.norm(changed)) == pytest.approx(1.0, rel=1e-6)
    else:
        assert_equal(changed, grads)


def test_agm_scores_over_three_steps():
    """S is the mean of the losses before, and padded steps do nothing."""
    update = functools.partial(fc.methods.fedagm(clip=False).update, None, {})
    agm = module("fedagm")
    context = agm.Scores(jnp.zeros(2), jnp.zeros((), jnp.int32))
    losses = [[1.0, 2.0], [0.5, 1.0], [0.0, 3.0]]
    for i, loss in enumerate(losses):
        step = _step(extra=(jnp.array(loss), jnp.array(4.0)))
        _, context = update(step, context)
        np.testing.assert_allclose(
            context.means, np.mean(losses[: i + 1], axis=0), rtol=1e-6
        )
    assert int(context.steps) == 3
    nobody = _step(extra=(jnp.array([9.0, 9.0]), jnp.array(0.0)))
    assert_equal(update(nobody, context)[1], context)
    # S = (0.5, 2), s = (0.2, 1.2): tau_a = e^1.5, r_a = e^1, k_a = exp(tau_a - r_a).
    k = agm.coefficients(jnp.array([0.2, 1.2]), jnp.array([0.5, 2.0]), 1.0)
    expected_a = math.exp(math.exp(1.5) - math.exp(1.0))
    expected_v = math.exp(math.exp(-1.5) - math.exp(-1.0))
    np.testing.assert_allclose(k, [expected_a, expected_v], rtol=1e-5)
    swapped = agm.coefficients(
        jnp.array([0.2, 1.2]), jnp.array([0.5, 2.0]), 1.0, "fl_port"
    )
    np.testing.assert_allclose(swapped, [expected_v, expected_a], rtol=1e-5)


def test_agm_advantage_is_bounded():
    k = module("fedagm").coefficients(jnp.zeros(2), jnp.array([0.0, 9.0]), 1.0)
    assert float(k[0]) == pytest.approx(math.exp(10.0), rel=1e-5)


def test_agm_remembers_scores_across_rounds():
    fed = federation()
    problem = algorithm(fc.methods.fedagm(), model("classifier"))
    first, _ = rounds(problem, fed, 1)
    second, _ = rounds(problem, fed, 2)
    # Two epochs of ceil(9 / 4) = 3 steps at client 0; client 1 has one modality.
    assert first.memory.steps.tolist()[:2] == [6, 0]
    assert second.memory.steps.tolist()[:2] == [12, 0]


def _step(extra, batch=None):
    outputs = fc.Outputs(jnp.zeros((1, 2)), {}, {}, {}, {}, {}, extra)
    return fc.methods.Step({}, outputs, batch, None)


# --- SCAFFOLD -------------------------------------------------------------------------


class Scalar:
    """One weight, owned by everybody."""

    modalities = ("m",)
    num_classes = 2
    trained = staticmethod(lambda available: {"w": jnp.ones(())})
    frozen = Frozen()


def test_scaffold_over_two_rounds_by_hand():
    """Two clients of N = 4 with 1 and 3 samples; K_i = 2 steps, eta = 0.5."""
    method = fc.methods.scaffold()
    params = {"w": jnp.array(1.0)}
    c, c_0 = method.init(Scalar, params, 4)
    memory = [c_0, c_0]

    def one_round(params, c, memory, ends):
        uploads, new = [], []
        for size, c_i, end in zip((1, 3), memory, ends, strict=True):
            client = fc.methods.Client(
                Scalar, params, {}, c, c_i, _Data(size), jnp.array(0), jnp.array(0.5), 2
            )
            ended = LocalUpdate({"w": jnp.array(end)}, {})
            upload, c_new = method.finish(client, ended, ())
            uploads.append(weighted_upload(upload))
            new.append(c_new)
        total = jax.tree.map(lambda a, b: a + b, *uploads)
        cohort = SimpleNamespace(
            federation=_Federation(4), shared=c, memory=(), num_accepted=jnp.array(2.0)
        )
        return method.merge(cohort, mean_upload(total))[0], new

    c, memory = one_round(params, c, memory, (0.5, 0.0))
    # c_i = (1 - end) / (2 * 0.5) = 0.5, 1; c = (2/4) (1 * 0.5 + 3 * 1) / 4 = 0.4375.
    assert [float(m["w"]) for m in memory] == [0.5, 1.0]
    assert float(c["w"]) == 0.4375
    c, memory = one_round({"w": jnp.array(0.125)}, c, memory, (0.0, 0.125))
    # c_0 <- 0.5 - 0.4375 + 0.125 = 0.1875; c_1 <- 1 - 0.4375 + 0 = 0.5625;
    # dc = -0.3125, -0.4375; c <- 0.4375 + 0.5 (-0.3125 - 3 * 0.4375) / 4 = 0.234375.
    assert [float(m["w"]) for m in memory] == [0.1875, 0.5625]
    assert float(c["w"]) == 0.234375
    client = fc.methods.Client(
        Scalar, params, {}, c, memory[0], _Data(1), jnp.array(0), jnp.array(0.5), 2
    )
    g, _ = method.update(client, {"w": jnp.array(2.0)}, None, ())
    assert float(g["w"]) == 2.0 + 0.234375 - 0.1875


class _Data:
    def __init__(self, size, modalities=1):
        self.num_examples = jnp.array(size)
        self.available = jnp.ones(modalities)


class _Federation:
    def __init__(self, num_clients):
        self.num_clients = num_clients


def test_scaffold_server_variate_is_the_mean_of_the_clients():
    """Uniform weights, everybody in every round: c = mean_i c_i, block by block."""
    fed = federation(np.ones((5, 2), bool))
    method = fc.methods.scaffold(weights="uniform")
    state, _ = rounds(algorithm(method, model("classifier")), fed, 3)
    mean = jax.tree.map(lambda x: x.mean(0), state.memory)
    assert_close(state.shared, mean, rtol=1e-4, atol=1e-5)


# --- FedMSplit ------------------------------------------------------------------------


def test_msplit_mixing_by_hand():
    """Three owners on a line, -1, 0, 1 around their mean, and one who does not own."""
    mix = module("fedmsplit").mix_block
    block = {"w": jnp.array([[1.0], [2.0], [3.0], [50.0]])}
    mixed = mix(block, jnp.array([1.0, 1.0, 1.0, 0.0]), 0.5, 1.0)["w"][:, 0]
    # Client 0: cosines 1, 0, -1 with the owners; the mean itself has no direction.
    e = np.exp([1.0, 0.0, -1.0])
    neighbours = (e * [1, 2, 3]).sum() / e.sum()
    assert float(mixed[0]) == pytest.approx(0.5 * 1 + 0.5 * neighbours, rel=1e-6)
    assert float(mixed[1]) == pytest.approx(0.5 * 2 + 0.5 * 2.0, rel=1e-6)
    assert float(mixed[3]) == 50.0


@pytest.mark.up_to_rounding
@pytest.mark.slow
def test_msplit_without_mixing_is_everybody_alone():
    fed, net = federation(), model("classifier")
    state, _ = rounds(algorithm(fc.methods.fedmsplit(eta=0.0), net), fed, 2)
    alone = fc.Method(
        select=lambda server, key: fc.methods.Selection(
            jnp.array([2], jnp.int32), fed.available[2:3], (), ()
        )
    )
    one, _ = rounds(algorithm(alone, net, clients_per_round=1), fed, 2)
    assert_close(jax.tree.map(lambda x: x[2], state.memory), one.params)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scaffold", {"momentum": 1.0}, "momentum: 1.0"),
        ("scaffold", {"weights": "size"}, "weights: unknown 'size'"),
        ("fedproto", {"lam": -1.0}, "lam: -1.0"),
        ("fedproto", {"form": "l1"}, "form: unknown 'l1'"),
        ("fedpmr", {"first_round": -1}, "first_round: -1 is negative"),
        ("fedogm", {"alpha": -0.1}, "alpha: -0.1"),
        ("fedogm", {"first_round": 5, "last_round": 4}, "last_round: 4"),
        ("fedpmr", {"coefficient": "hard"}, "coefficient: unknown"),
        ("fedagm", {"sign": "plus"}, "sign: unknown"),
        ("fedmsplit", {"eta": 1.5}, "eta: 1.5"),
        ("fedmsplit", {"tau": 0.0}, "tau: 0.0"),
        ("power_of_choice", {"candidates": 0}, "candidates: 0"),
        ("power_of_choice", {"average": "median"}, "average: unknown 'median'"),
        ("bmsfed", {"threshold": 0.5}, "threshold: 0.5"),
        ("bmsfed", {"drop_threshold": 0.5}, "drop_threshold: 0.5"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        fc.methods.REGISTRY[name](**options)


def test_a_feature_that_is_its_prototype_feels_no_pull_from_rounding():
    prototype = jnp.array([[1.0, 2.0, 2.0], [5.0, 5.0, 5.0]])
    feature = prototype[:1] * (1 + 1e-7)  # as another program might compute it

    def loss(h):
        return distance_logits(h, prototype, jnp.ones(2))[0, 0]

    np.testing.assert_array_equal(jax.grad(loss)(feature), 0.0)
    assert jnp.abs(jax.grad(loss)(feature * 1.01)).max() > 0.1
