"""Cleaning, tokens, and the encoder of token ids."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.data import raw

SOUND = [
    "caf\u00e9 \u2014 na\u00efve \u201cquotes\u201d \u2026",
    "\u0627\u0644\u062c\u0632\u0627\u0626\u0631 \u041f\u0440\u0438\u0432\u0435\u0442",
    "\u00a31 = \u20ac1.15, 20\u00b0C, \u00bd \u00a9 \u00bb",
    "\U0001f64f\U0001f3fb \u2764\ufe0f",
    "\u00c9\u00c9N S\u00c3O PAULO",
]


@pytest.mark.parametrize("text", SOUND)
@pytest.mark.parametrize("encoding", ["cp1252", "mac_roman"])
def test_mojibake_is_repaired(text, encoding):
    """UTF-8 read as another encoding; undefined bytes stay as they are."""

    def misread(byte):
        try:
            return bytes([byte]).decode(encoding)
        except UnicodeDecodeError:
            return chr(byte)

    latin = text.translate({c: None for c in range(0x400, 0x700)})
    wrong = "".join(misread(byte) for byte in latin.encode())
    if latin.strip():
        assert raw.text.repair_mojibake(wrong) == latin


def test_arabic_and_cyrillic_read_as_windows_1252_are_repaired():
    wrong = "".join(
        bytes([b]).decode("cp1252", "ignore") or chr(b) for b in SOUND[1].encode()
    )
    assert raw.text.repair_mojibake(wrong) == SOUND[1]


@pytest.mark.parametrize("text", [*SOUND, "", "plain", "x\u00a0y"])
def test_sound_text_stays(text):
    assert raw.text.repair_mojibake(text) == text


def test_twice_mangled_text_is_repaired():
    once = "It\u2019s".encode().decode("cp1252")
    twice = once.encode().decode("cp1252")
    assert raw.text.repair_mojibake(twice) == "It\u2019s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RT @a: hi", "@a: hi"),
        ("say RT @a", "say RT @a"),
        ("RTs welcome", "RTs welcome"),
        ("see https://t.co/Ab1 now http://x.y", "see now"),
        ("#Help #now", "Help now"),
        (" a \u00a0 b\t", "a b"),
        ("M\u00c3\u00a9xico\u00c2 ok", "M\u00e9xico ok"),
    ],
)
def test_clean(text, expected):
    assert raw.text.clean(text) == expected


def test_tokens_are_words_and_symbols():
    assert raw.text.tokenize("We\u2019re OK: 5km, \U0001f64f!!") == [
        "we\u2019re", "ok", ":", "5km", ",", "\U0001f64f", "!", "!",
    ]  # fmt: skip


def test_ids_are_the_same_in_another_process():
    words = ["fire", "\u00e9", "\U0001f64f", "x" * 500]
    ours = [raw.text.token_id(word) for word in words]
    assert all(0 < i < 1 << raw.text.HASH_BITS for i in ours)
    assert len(set(ours)) == len(words)
    program = (
        "from fedcmi_jax.data.raw.text import token_id\n"
        f"print([token_id(word) for word in {words!a}])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    ).stdout  # fmt: skip
    assert shown.strip() == str(ours)


KEY = jax.random.key(0)
IDS = jnp.array([[5, 9, 5, 0, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 0]], jnp.int32)


def encode(pool, ids, params=None, **options):
    module = fc.models.text(features=6, width=8, buckets=16, pool=pool, **options)
    mask = jnp.ones(len(ids))
    if params is None:
        params = jax.jit(lambda key: module.init(key, ids, mask, False))(KEY)
    return jax.jit(lambda p: module.apply(p, ids, mask, True))(params), params


def test_bag_is_the_mean_of_the_real_tokens():
    h, params = encode("bag", IDS)
    table, dense = params["params"]["embedding"], params["params"]["dense"]
    means = [(2 * table[5] + table[9]) / 3, table[7], jnp.zeros(8)]
    expected = jax.nn.relu(jnp.stack(means) @ dense["kernel"])
    np.testing.assert_allclose(h, expected, atol=1e-6)


@pytest.mark.parametrize("pool", ["bag", "transformer"])
def test_padding_changes_nothing(pool):
    h, params = encode(pool, IDS, blocks=2)
    for row, length in ((0, 3), (1, 1)):
        short = IDS[row : row + 1, :length]
        # Positions of the longer text, cut: the module is that of the shorter one.
        cut = jax.tree.map(lambda x: x, params)
        if pool == "transformer":
            cut["params"]["position"] = params["params"]["position"][:length]
        np.testing.assert_allclose(
            encode(pool, short, cut, blocks=2)[0], h[row : row + 1], atol=1e-5
        )
    assert np.isfinite(h).all()


def test_transformer_sees_the_order_and_bag_does_not():
    swapped = IDS[:, jnp.array([1, 0, 2, 3, 4])]
    for pool, same in (("bag", True), ("transformer", False)):
        h, params = encode(pool, IDS)
        other, _ = encode(pool, swapped, params)
        assert np.allclose(h[0], other[0], atol=1e-5) == same


def test_ids_beyond_the_buckets_share_rows():
    h, params = encode("bag", IDS)
    np.testing.assert_array_equal(
        encode("bag", jnp.where(IDS > 0, IDS + 16 * 5, 0), params)[0], h
    )


@pytest.mark.parametrize("pool", ["bag", "transformer"])
def test_gradients_under_per_client_weights(pool):
    module = fc.models.text(features=6, width=8, buckets=16, pool=pool)
    clients = jnp.stack([IDS, IDS[::-1]])
    mask = jnp.ones(3)
    keys = jax.random.split(jax.random.key(1))
    init = jax.jit(jax.vmap(lambda key: module.init(key, IDS, mask, False)))
    params = init(keys)

    def loss(p, x):
        return (module.apply(p, x, mask, True) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))
    mapped = jax.jit(jax.vmap(jax.grad(loss)))(params, clients)
    for i in range(2):
        alone = gradient(jax.tree.map(lambda x, i=i: x[i], params), clients[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            mapped,
            alone,
        )
    table = np.asarray(mapped["params"]["embedding"])
    assert set(np.flatnonzero(np.abs(table[0]).sum(1))) <= {5, 7, 9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width: 0 is below 1"),
        ({"buckets": 0}, "buckets: 0 is below 1"),
        ({"width": 6, "heads": 4}, "width: 6 is no multiple of heads: 4"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fc.models.text(**options)


def test_a_federation_learns_from_text():
    """Words of one's own for each of two classes, numbers that say nothing."""
    rng = np.random.default_rng(0)

    def split(n):
        labels = rng.integers(0, 2, n).astype(np.int32)
        words = [[f"class{c}", f"noise{rng.integers(50)}"] for c in labels]
        ids = raw.text.token_ids(words, 4)
        noise = rng.standard_normal((n, 3), np.float32)
        return fc.data.Split({"text": ids, "noise": noise}, labels)

    data = fc.data.Dataset("d", ("text", "noise"), ("0", "1"), split(200), split(100))
    parts = fc.partition.iid(data.train, 4, rng)
    federation = fc.build_federation(data, parts)
    encoders = {
        "text": fc.models.text(features=8, width=8, buckets=512),
        "noise": fc.models.mlp(features=8),
    }
    model = fc.models.classifier(encoders, data.shapes, 2)
    local = fc.LocalTraining(epochs=3, batch_size=20, learning_rate=0.05)
    algorithm = fc.build_algorithm(
        fc.methods.fedavg(), model, clients_per_round=2, local=local, chunk_size=2
    )
    state = algorithm.init(jax.random.key(0), federation)
    step = jax.jit(algorithm.round)
    for _ in range(4):
        state, _ = step(state, federation)
    batch = fc.Batch(
        jax.tree.map(jnp.asarray, data.test.inputs),
        labels=data.test.labels,
        valid=jnp.ones(100),
        available=jnp.ones((100, 2)),
        positions=jnp.arange(100),
    )
    outputs, _ = jax.jit(model.apply, static_argnums=3)(
        state.params, state.batch_stats, batch, False
    )
    assert (outputs.logits.argmax(1) == data.test.labels).mean() > 0.9
