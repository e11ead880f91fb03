"""The catalogue says what the loaders do."""

import pytest

from fedcmi_jax import data
from fedcmi_jax.cli.main import main
from fedcmi_jax.data.catalog import CATALOG

OFFLINE = ("noisy_digits", "cg_digits", "synthetic")


def test_every_data_set_has_an_entry():
    assert list(CATALOG) == list(data.REGISTRY)
    for entry in CATALOG.values():
        assert entry.modalities
        assert entry.get
        assert entry.licence


@pytest.mark.parametrize("name", OFFLINE)
def test_numbers_are_those_of_the_loader(name):
    entry, loaded = CATALOG[name], data.load(name)
    assert entry.modalities == loaded.modalities
    assert entry.classes == loaded.num_classes
    assert (entry.train, entry.test) == (loaded.train.size, loaded.test.size)
    assert entry.clients == ""


def test_list_shows_the_catalogue(capsys):
    assert main(["list", "datasets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in CATALOG.items():
        (row,) = [line for line in lines if line.split()[0] == name]
        assert entry.licence in row
        assert entry.get in row
