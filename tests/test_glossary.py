"""Every column of a run is explained, in code, in the docs and below the summary."""

import pathlib

import jax
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.final_block import final_block
from fedcmi_jax.evaluation import glossary
from fedcmi_jax.evaluation.glossary import GLOSSARY, explain
from fedcmi_jax.experiment import files, metrics_log, run_folder, training
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.testing.problem import algorithm, federation
from tests.test_config import tiny

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "glossary.md"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with every kind of column."""
    config = tiny(
        clients=6,
        method={"name": "fedcmi", "personal_infiltration": True},
        validation_fraction=0.2,
        client_test_fraction=0.2,
        holdout_clients=2,
        rounds=1,
        local={"epochs": 1},
    )
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_folder.make_folder(folder)
    return training.train(build(config), folder)


def test_every_column_of_a_run_is_explained(finished):
    log = metrics_log.MetricsLog(finished.folder / training.METRICS).read()
    columns = {name for line in log for name in line}
    assert {"personal_mean", "val_acc", "holdout_std", "client_test_p10"} <= columns
    assert {"client_test_per_client", "holdout_per_client"} <= columns
    ids = files.read_json(finished.folder / training.SUMMARY)["holdout_clients"]
    assert len(set(ids)) == len(finished.final["holdout_per_client"]) == 2
    for column in columns:
        assert explain(column).meaning


@pytest.mark.parametrize("name", fc.methods.REGISTRY)
def test_training_metrics_of_every_method_are_explained(name):
    problem, fed = algorithm(fc.methods.REGISTRY[name]()), federation()
    state = jax.eval_shape(problem.init, jax.random.key(0), fed)
    _, info = jax.eval_shape(problem.round, state, fed)
    for column in info.metrics:
        assert explain(column).meaning


def test_every_entry_stands_in_the_docs():
    text = PAGE.read_text()
    for column, term in GLOSSARY.items():
        assert f"| `{column}` | {term.shown} | {term.meaning} |" in text


def test_the_summary_explains_what_it_shows_once_and_nothing_else(finished):
    block = final_block(finished)
    numbers, _, meanings = block.partition("\nwhere\n")
    lines = meanings.splitlines()
    assert len(set(lines)) == len(lines)
    for term in GLOSSARY.values():
        if term.shown:
            line = f"  {term.shown}: {term.meaning}"
            assert (f"{term.shown} " in numbers) == (line in lines)
    assert "alone" in numbers
    assert "validation" in numbers
    assert "nan" not in block


def test_a_plain_run_shows_no_held_out_samples(finished):
    kept = ("val_", "client_test_", "holdout_", "personal_")
    final = {n: v for n, v in finished.final.items() if not n.startswith(kept)}
    block = final_block(finished._replace(final=final, best=None))
    for name in ("validation", "own test samples", "new clients", "own models"):
        assert name not in block


def test_a_fixed_partition_is_named(finished):
    for fixed in (False, True):
        block = final_block(finished._replace(fixed_partition=fixed))
        assert ("on the partition of seed 0 (fixed_partition)" in block) == fixed


def test_lookups():
    assert explain("acc_a_b_zero") is GLOSSARY["acc_{m}_zero"]
    assert explain("client_test_mean") is GLOSSARY["client_test_{spread}"]
    assert explain("client_mean") is GLOSSARY["client_{spread}"]
    assert explain("val_acc_x_head") is GLOSSARY["val_{name}"]
    with pytest.raises(ValueError, match="column: 'nothing' is not explained"):
        explain("nothing")
    assert glossary.explain is explain
