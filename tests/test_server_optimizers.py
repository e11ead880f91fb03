"""Server optimizers by hand, over three rounds; blocks that nobody owned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax import server_optimizers
from fedcmi_jax.aggregate import UpdateSums, mean_delta, optimizer_step
from fedcmi_jax.experiment.config import Config, ServerConfig, check_config
from fedcmi_jax.experiment.optimization import server_optimizer
from fedcmi_jax.testing.problem import AVAILABLE, algorithm, assert_equal, federation

RATE = 0.1
PAPER = {
    "adagrad": server_optimizers.fed_adagrad(RATE),
    "adam": server_optimizers.fed_adam(RATE),
    "yogi": server_optimizers.fed_yogi(RATE),
    "avgm": server_optimizers.fed_avgm(RATE),
}
STATEFUL = PAPER | {
    "optax_adam": optax.adam(RATE),
    "optax_yogi": optax.yogi(RATE),
    "optax_adagrad": optax.adagrad(RATE),
    "optax_momentum": optax.sgd(RATE, momentum=0.9),
    "two optimizers": optax.multi_transform(
        {"fast": optax.adam(RATE), "slow": optax.sgd(RATE, momentum=0.5)},
        lambda params: jax.tree.map(lambda x: "fast" if x.ndim else "slow", params),
    ),
}


class ByHand:
    """Algorithm 2 of arXiv 2003.00295 for one array, in float64."""

    def __init__(self, name, x):
        self.name, self.x = name, np.float64(x)
        self.m, self.v = 0.0 * self.x, np.full_like(self.x, 1e-3**2)

    def step(self, delta):
        delta = np.float64(delta)
        if self.name == "avgm":
            self.m = 0.9 * self.m + delta
            self.x = self.x + RATE * self.m
            return
        beta_1 = 0.0 if self.name == "adagrad" else 0.9
        self.m = beta_1 * self.m + (1 - beta_1) * delta
        square = delta**2
        self.v = {
            "adagrad": self.v + square,
            "adam": 0.99 * self.v + 0.01 * square,
            "yogi": self.v - 0.01 * square * np.sign(self.v - square),
        }[self.name]
        self.x = self.x + RATE * self.m / (np.sqrt(self.v) + 1e-3)


@functools.cache
def update_with(optimizer):
    """``optimizer_step`` as one compiled program."""

    def update(params, sums, state):
        delta = mean_delta(sums.deltas, sums.weights)
        some = sums.num_accepted > 0
        return optimizer_step(params, delta, sums.weights, optimizer, state, some)

    return jax.jit(update)


def sums(deltas, weights):
    """A round's sums from mean updates and total weights of the blocks a, v and f."""
    weights = {
        "encoder": {m: np.float32(weights[m]) for m in "av"},
        "fusion": np.float32(weights["f"]),
    }
    deltas = {"encoder": {m: deltas[m] for m in "av"}, "fusion": deltas["f"]}
    deltas = jax.tree.map(
        lambda w, d: {"w": w * np.asarray(d, np.float32)}, weights, deltas
    )
    accepted = np.float32(any(w > 0 for w in jax.tree.leaves(weights)))
    return UpdateSums(deltas, weights, {}, {}, (), {}, accepted, accepted)


def start():
    x = np.array([1.0, -2.0, 0.5])
    return {
        "encoder": {"a": {"w": jnp.array(x)}, "v": {"w": jnp.array(2 * x)}},
        "fusion": {"w": jnp.array(3 * x)},
    }


# Small and large changes of both signs, so that Yogi's v grows and shrinks; in the
# second round nobody owns v.
DELTAS = [
    {"a": [3e-3, 0.2, -1.0], "v": [0.5, -1e-4, 3.0], "f": [0.1, 0.1, 0.0]},
    {"a": [-1e-3, 1e-5, 0.3], "v": [9.0, 9.0, 9.0], "f": [0.1, -0.4, 4e-3]},
    {"a": [2e-3, 0.0, 2.0], "v": [-0.5, 2e-4, 0.01], "f": [0.05, 0.2, -2e-3]},
]
WEIGHTS = [{"a": 3, "v": 5, "f": 8}, {"a": 4, "v": 0, "f": 4}, {"a": 1, "v": 2, "f": 3}]


@pytest.mark.parametrize("name", PAPER)
def test_three_rounds_by_hand(name):
    params = start()
    state = PAPER[name].init(params)
    hands = {
        "a": ByHand(name, params["encoder"]["a"]["w"]),
        "v": ByHand(name, params["encoder"]["v"]["w"]),
        "f": ByHand(name, params["fusion"]["w"]),
    }
    for deltas, weights in zip(DELTAS, WEIGHTS, strict=True):
        params, state = update_with(PAPER[name])(params, sums(deltas, weights), state)
        for block, hand in hands.items():
            if weights[block]:
                hand.step(deltas[block])
        ours = params["encoder"] | {"f": params["fusion"]}
        for block, hand in hands.items():
            np.testing.assert_allclose(ours[block]["w"], hand.x, rtol=2e-6, atol=1e-6)


def stepped(optimizer):
    """Parameters after the first round."""
    params = start()
    state = optimizer.init(params)
    return update_with(optimizer)(params, sums(DELTAS[0], WEIGHTS[0]), state)[0]


@pytest.mark.parametrize("name", PAPER)
def test_configured_names_are_the_papers(name):
    configured = server_optimizer(ServerConfig(name, RATE))
    assert_equal(stepped(configured), stepped(PAPER[name]))


def moments(state):
    """What a state holds of block v."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return [x for path, x in found if "'v'" in jax.tree_util.keystr(path)]


@pytest.mark.parametrize("name", STATEFUL)
def test_moments_of_a_block_that_nobody_owned_stay(name):
    optimizer, params = STATEFUL[name], start()
    states = [optimizer.init(params)]
    for deltas, weights in zip(DELTAS, WEIGHTS, strict=True):
        params, state = update_with(optimizer)(
            params, sums(deltas, weights), states[-1]
        )
        states.append(state)
    kept = [moments(s) for s in states]
    assert kept[0]
    assert_equal(kept[2], kept[1])
    for before, after in ((0, 1), (2, 3)):
        for old, new in zip(kept[before], kept[after], strict=True):
            assert bool((old != new).all())
    nobody = {"a": 0, "v": 0, "f": 0}
    same, kept_state = update_with(optimizer)(
        params, sums(DELTAS[0], nobody), states[-1]
    )
    assert_equal((same, kept_state), (params, states[-1]))


def test_steps_are_counted_although_a_block_is_kept():
    optimizer, params = optax.adam(RATE), start()
    state = optimizer.init(params)
    for deltas, weights in zip(DELTAS, WEIGHTS, strict=True):
        params, state = update_with(optimizer)(params, sums(deltas, weights), state)
    assert int(state[0].count) == 3


@pytest.mark.parametrize("name", ["adam", pytest.param("yogi", marks=pytest.mark.slow)])
def test_three_compiled_rounds_by_hand(name):
    """One client per round; client 1 of the second round has one modality only."""

    def select(server, key):
        ids = server.round[None]
        return fc.methods.Selection(ids, server.federation.available[ids], (), ())

    # Keeps the gradient that the round feeds in, so that it can be read.
    reader = optax.GradientTransformation(
        lambda params: params, lambda g, state, params: (g, g)
    )
    fed = federation()
    problem = algorithm(
        fc.Method(select=select),
        clients_per_round=1,
        server_optimizer=optax.chain(reader, PAPER[name]),
    )
    step = jax.jit(problem.round)
    state = problem.init(jax.random.key(0), fed)
    hands = jax.tree.map(lambda x: ByHand(name, x), state.params)
    for i in range(3):
        state, _ = step(state, fed)
        gradient, _ = state.server_optimizer
        for kind, blocks in hands.items():
            for key, block in blocks.items():
                if kind == "fusion" or AVAILABLE[i][fed.modalities.index(key)]:
                    jax.tree.map(lambda h, g: h.step(-g), block, gradient[kind][key])
    jax.tree.map(
        lambda h, x: np.testing.assert_allclose(x, h.x, rtol=1e-5, atol=1e-6),
        hands,
        state.params,
    )


@pytest.mark.parametrize("name", server_optimizers.REGISTRY)
def test_every_optimizer_has_the_rate_that_the_help_says(name):
    config = ServerConfig(optimizer=name)
    check_config(Config(server=config))
    rates = {"adagrad": 0.1, "adam": 0.01, "yogi": 0.01, "avgm": 1.0}
    rate = rates.get(name, 0.03)
    said = "adagrad 0.1, adam and yogi 0.01, avgm 1, optax_adam and optax_yogi 0.03"
    assert said in " ".join(ServerConfig.__doc__.split())
    explicit = server_optimizer(ServerConfig(name, rate))
    assert_equal(stepped(server_optimizer(config)), stepped(explicit))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", {"learning_rate": 0.0}, "learning_rate: 0.0 is not positive"),
        ("adagrad", {"tau": 0.0}, "tau: 0.0 is not positive"),
        ("adam", {"beta_1": 1.0}, r"beta_1: 1.0 is outside \[0, 1\)"),
        ("yogi", {"beta_2": -0.1}, "beta_2: -0.1"),
        ("avgm", {"momentum": 1.5}, "momentum: 1.5"),
        ("optax_yogi", {"learning_rate": -1.0}, "learning_rate: -1.0"),
    ],
)
def test_bad_numbers_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        server_optimizers.REGISTRY[name](**options)
