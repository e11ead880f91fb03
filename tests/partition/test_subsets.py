"""Modality subsets per client: counts, probabilities, tables, and what is refused."""

import numpy as np
import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment.client_modalities import client_modalities
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.split import load_dataset, split
from fedcmi_jax.partition.subsets import draw_subsets, read_subsets
from tests.test_config import tiny

NAMES = ("a", "b", "c")


def table(modalities, n=20, names=NAMES, seed=0):
    config = Config(modalities=str(modalities))
    return client_modalities(config, names, n, np.random.default_rng(seed))


def counted(available):
    """Rows as text -> how many clients have them."""
    rows, counts = np.unique(available.astype(int), axis=0, return_counts=True)
    return {"".join(map(str, row)): int(n) for row, n in zip(rows, counts, strict=True)}


def test_counts_are_exact_and_the_seed_decides_who():
    found = table("a=5, b=10,a+c=4,c+b+a=1")
    assert counted(found) == {"100": 5, "010": 10, "101": 4, "111": 1}
    np.testing.assert_array_equal(found, table("a=5,b=10,a+c=4,a+b+c=1"))
    assert not np.array_equal(found, table("a=5,b=10,a+c=4,a+b+c=1", seed=1))


def test_probabilities_are_those_of_each_client():
    share = counted(table("a=0.25,b+c=0.75", n=4000))
    assert share.keys() == {"100", "011"}
    # Three standard deviations of a binomial, sqrt(4000 * 0.25 * 0.75) = 27.4.
    assert abs(share["100"] - 1000) < 83
    assert counted(table("a=0.0,b=1.0")) == {"010": 20}


def test_a_name_may_hold_a_plus():
    available = table("a+b=1,c=1", n=2, names=("a+b", "c"))
    assert counted(available) == {"10": 1, "01": 1}


def test_tables_go_by_name(tmp_path):
    rows = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
    np.savez(
        tmp_path / "t.npz", modalities=["c", "a", "b"], available=rows[:, [2, 0, 1]]
    )
    ordered = [f"{r[1]},{r[0]},{r[2]}" for r in rows]
    (tmp_path / "t.csv").write_text("b,a,c\n" + "\n".join(ordered) + "\n")
    by_id = [f"{r[0]},{i},{r[1]},{r[2]}" for i, r in enumerate(rows)]
    (tmp_path / "i.csv").write_text("a,client,b,c\n" + "\n".join(by_id[::-1]))
    for name in ("t.npz", "t.csv", "i.csv"):
        np.testing.assert_array_equal(table(tmp_path / name, n=4), rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "'a' is no subset and amount"),
        ("=3", "'=3' is no subset"),
        ("a=-1", "'a=-1' is no subset"),
        ("a=nan", "'a=nan' is no subset"),
        ("a=10,a=10", "'a' stands twice"),
        ("a=10,b=0.5", "mixes counts and probabilities"),
        ("a=0.5,b=0.4", "add up to 0.9; give 1 in all"),
        ("a=5,b=10", "counts add up to 15, the partition gives 20 clients"),
        ("a=10,d=10", "no modality 'd'; choose from a, b, c"),
        ("a+a=20", "'a+a' names one twice"),
        ("a+=20", "no modality ''"),
        ("no/such.csv", "there is no file no/such.csv"),
    ],
)
def test_what_is_impossible_is_one_line(text, message):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")) as error:
        table(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no table"),
        ("a,b\n1,1\n", "columns ['a', 'b'], the data set has ['a', 'b', 'c']"),
        ("a,b,c\n1,1,1\n", "1 rows, the partition gives 2 clients"),
        ("a,b,c\n1,1,1\n0,0,0\n", "client 1 has no modality"),
        ("a,b,c\n1,1,1\n0,2,0\n", "client 1, b: 2 is neither 0 nor 1"),
        ("a,b,c\n1,1,1\n0,x,0\n", "line '0,x,0' (client 1) is no row of 3 whole"),
        ("a,b,c\n1,1,1\n0,1\n", "line '0,1' (client 1) is no row"),
        ("a,a,c\n1,1,1\n0,0,1\n", "stands twice"),
        ("client,a,b,c\n1,1,1,1\n1,0,0,1\n", "client is not 0 to 1"),
    ],
)
def test_a_bad_table_is_one_line(content, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="t.csv") as error:
        table(path, n=2)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_npz_is_one_line(tmp_path):
    path = tmp_path / "t.npz"
    for arrays, message in (
        ({"available": np.ones((2, 3))}, "has no array 'modalities'"),
        ({"modalities": ["a"], "available": np.ones((2, 3))}, "3 columns for"),
        ({"modalities": NAMES, "available": np.array([None])}, "array of objects"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            table(path, n=2)


def test_subsets_draw_as_much_as_two_modalities_always_did():
    # Who has what must not change what is drawn after it: held-out samples.
    available = draw_subsets(
        read_subsets("a=2,b=3,a+b=5"), ("a", "b"), 10, np.random.default_rng(4)
    )
    drawn = np.random.default_rng(4).permutation(10)
    assert available[drawn].tolist() == [[1, 0]] * 2 + [[0, 1]] * 3 + [[1, 1]] * 5


def test_a_run_has_them_and_the_command_refuses_in_one_line(tmp_path, capsys):
    config = tiny(modalities="strong=3,weak=1")
    found = split(config, load_dataset(config.dataset, print))
    assert found.available.sum(axis=0).tolist() == [3, 1]
    args = ["synthetic", "--modalities=strong=3", f"--output={tmp_path / 'run'}"]
    assert main(["train", *args]) == 2
    error = capsys.readouterr().err
    assert "counts add up to 3" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
