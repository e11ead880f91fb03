import dataclasses
import inspect
import json
import typing

import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.experiment import build, measure
from fedcmi_jax.experiment.parts import Parts
from fedcmi_jax.experiment.presets import PRESETS, preset
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.experiment.split import load_dataset

ENTRIES = [(kind, name) for kind, known in configs.REGISTRIES.items() for name in known]
TINY = {
    "dataset": {
        "name": "synthetic",
        "train_samples": 60,
        "test_samples": 20,
        "num_classes": 3,
        "features": 4,
    },
    "partition": {"name": "iid"},
    "encoder": {"name": "mlp", "features": 4},
    "model": {"width": 4},
    "clients": 4,
    "clients_per_round": 2,
}


def tiny(**values):
    return configs.from_dict(TINY | values)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = preset(name)
    text = json.dumps(configs.to_dict(config), allow_nan=False)
    assert configs.from_dict(json.loads(text)) == config
    assert config.preset == name
    configs.check_config(config)


def test_infinity_and_tuples_survive_json():
    config = tiny(
        partition={"name": "dirichlet", "cap": float("inf")},
        encoder={"name": "mlp", "hidden": (8, 4)},
    )
    text = json.dumps(configs.to_dict(config), allow_nan=False)
    read = configs.from_dict(json.loads(text))
    assert read == config
    assert read.encoder.hidden == (8, 4)


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_sections_mirror_their_factory(kind, name):
    made = configs.section(kind, name)
    options = {
        p.name: p.default
        for p in inspect.signature(configs.REGISTRIES[kind][name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    fields = {f.name: f.default for f in dataclasses.fields(made)}
    assert fields == {"name": name} | options
    for option in fields:
        assert f"  {option}: " in (made.__doc__ or ""), "an option without help"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().name = "other"
    assert configs.from_dict({kind: {"name": name}}) == configs.from_dict(
        configs.to_dict(configs.from_dict({kind: {"name": name}}))
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"roundz": 3}, "roundz: unknown field"),
        ({"multi_ratio": 1.0}, "multi_ratio: called multimodal_fraction since"),
        ({"local": {"knee": 3}}, "local.knee: called decay_start since"),
        ({"local": {"lr": 1}}, "local.lr: unknown field"),
        ({"method": {"name": "fedavg", "mu": 1.0}}, "method.mu: unknown field"),
        ({"method": {"name": "fedcim"}}, "did you mean 'fedcmi'"),
        ({"local": 3}, "local: 3 is not a table"),
        ({"method": 3}, "method: 3 is not a table"),
        ({"method": {"name": 3}}, "method.name: 3 is not a text"),
    ],
)
def test_from_dict_names_what_is_wrong(values, message):
    with pytest.raises(ValueError, match=message):
        configs.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noisy_clients": 0.5}, "noisy_clients: 0.5 .* without label_noise"),
        ({"label_noise_kind": "pair"}, "label_noise_kind: pair .* without label_noise"),
        (
            {"multimodal_fraction": 1.0, "modalities": "clean=4"},
            "multimodal_fraction: 1.0 .* beside modalities; leave it at 0.5",
        ),
    ],
)
def test_a_new_run_has_no_option_without_effect(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fc.train(values)
    configs.check_config(configs.from_dict(values))  # a run that has it goes on


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clients": 0}, "^clients=0: .*natural"),
        ({"clients": -1}, "clients: -1 is negative"),
        ({"clients_per_round": 5}, "clients_per_round: 5 is more than clients: 4"),
        ({"rounds": 0}, "rounds: 0"),
        ({"eval_every": 0}, "eval_every: 0"),
        ({"checkpoint_every": 0}, "checkpoint_every: 0"),
        ({"rounds_per_call": 0}, "rounds_per_call: 0"),
        ({"rounds_per_call": 2, "stream": True}, "rounds_per_call: 2 is not possible"),
        ({"chunk_size": 0}, "chunk_size: 0"),
        ({"clip_norm": 0.0}, "clip_norm: 0.0"),
        ({"seed": -1}, "seed: -1"),
        ({"multimodal_fraction": 1.5}, "multimodal_fraction=1.5"),
        ({"probe_fraction": 1.0}, "probe_fraction: 1.0"),
        ({"validation_fraction": 1.0}, "validation_fraction: 1.0"),
        ({"validation_fraction": -0.1}, "validation_fraction: -0.1"),
        ({"validation_fraction": 0.001}, "validation_fraction: its share of 60 .* no"),
        ({"client_test_fraction": 1.0}, "client_test_fraction: 1.0"),
        ({"client_test_fraction": 0.001}, "client_test_fraction: its share of 60"),
        (
            {"validation_fraction": 0.5, "probe_fraction": 0.5},
            r"probe_fraction 0.5 \+ validation_fraction 0.5 leave nothing to train",
        ),
        ({"holdout_clients": -1}, "holdout_clients: -1 is negative"),
        ({"holdout_clients": 4}, "holdout_clients: 4 of 4 clients; give at most 3"),
        (
            {"holdout_clients": 3},
            "clients_per_round: 2 is more than clients: 4 less holdout_clients: 3",
        ),
        ({"clients": 61, "clients_per_round": 2}, "^clients=61"),
        ({"local": {"batch_size": 0}}, "local.batch_size: 0"),
        ({"local": {"epochs": 0}}, "local.epochs: 0"),
        ({"local": {"learning_rate": 0.0}}, "local.learning_rate: 0.0"),
        ({"local": {"learning_rate": float("nan")}}, "local.learning_rate: nan"),
        ({"local": {"momentum": 1.0}}, "local.momentum: 1.0"),
        ({"local": {"weight_decay": -1.0}}, "local.weight_decay: -1.0"),
        ({"local": {"clip_grad_norm": 0.0}}, "local.clip_grad_norm: 0.0"),
        ({"local": {"optimizer": "lion"}}, "local.optimizer: unknown 'lion'"),
        ({"server": {"optimizer": "yogi", "learning_rate": 0.0}}, "server.learning"),
        ({"model": {"width": 0}}, "model.width: 0"),
        ({"encoder": {"name": "mlp", "features": 0}}, "encoder.features: 0"),
        ({"encoder": {"name": "mlp", "hidden": (3, 0)}}, "encoder.hidden: 0"),
        ({"partition": {"name": "dirichlet", "alpha": 0.0}}, "alpha=0.0"),
        ({"method": {"name": "fedcmi", "lam": -1.0}}, "lam: -1.0"),
        ({"dataset": {"name": "synthetic", "train_samples": 0}}, "train_samples=0"),
        ({"model": {"architecture": "classifier"}}, "needs projectors"),
    ],
)
def test_build_refuses_what_is_impossible(values, message):
    with pytest.raises(ValueError, match=message) as error:
        build(tiny(**values))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("clients", [0, 5])
def test_natural_partitions_give_the_number_of_clients(clients):
    dataset = TINY["dataset"] | {"natural_clients": 5}
    values = {"dataset": dataset, "partition": {"name": "natural"}, "clients": clients}
    built = build(tiny(**values, clients_per_round=5))
    assert built.federation.num_clients == built.config.clients == 5
    assert built.federation.sizes.tolist() == [12] * 5
    with pytest.raises(
        ValueError, match="clients_per_round: 6 is more than clients: 5"
    ):
        build(tiny(**values, clients_per_round=6))
    with pytest.raises(ValueError, match="^clients=4: .*5 natural clients"):
        build(tiny(**values | {"clients": 4}))


def test_all_methods_share_one_split_that_the_seed_decides():
    def split(**values):
        values = {"partition": {"name": "dirichlet"}} | values
        federation = build(tiny(**values)).federation
        return (*federation.inputs.values(), federation.sizes, federation.available)

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    first = split()
    assert same(first, split(method={"name": "fedavg"}, local={"epochs": 1}))
    assert not same(first, split(seed=1))


def test_auto_architecture_is_what_the_method_needs():
    def has_projectors(method, architecture="auto"):
        model = TINY["model"] | {"architecture": architecture}
        config = tiny(method={"name": method}, model=model)
        return build(config).model.has_projectors

    assert has_projectors("fedcmi")
    assert not has_projectors("fedavg")
    assert has_projectors("fedavg", "two_projector")


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (configs.ServerConfig, "optimizer"),
        (configs.LocalConfig, "optimizer"),
        (configs.ModelConfig, "fusion"),
        (configs.ModelConfig, "projector"),
    ],
)
def test_every_choice_can_be_built(section, field):
    kind = section.__name__.removesuffix("Config").lower()
    for choice in typing.get_args(typing.get_type_hints(section)[field]):
        assert build(tiny(**{kind: {field: choice}}))


PUBLISHED = {"synthetic", "noisy-digits", "cg-digits"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_real_data_hold_samples_out_for_choices(name):
    published = any(name.startswith(known) for known in PUBLISHED)
    assert preset(name).validation_fraction == (0.0 if published else 0.1)


def test_the_validation_split_is_drawn_after_everything_else():
    plain, split = (build(tiny(validation_fraction=f)) for f in (0.0, 0.2))
    assert plain.measures.validate is None
    np.testing.assert_array_equal(
        plain.federation.available, split.federation.available
    )
    assert plain.federation.sizes.tolist() == [15] * 4
    assert split.federation.sizes.tolist() == [12] * 4
    ours, theirs = (
        {tuple(row) for row in np.asarray(b.federation.inputs["strong"]).tolist()}
        for b in (split, plain)
    )
    assert ours < theirs


def test_a_fixed_partition_is_that_of_seed_0():
    def data(**values):
        values = {"validation_fraction": 0.2, "holdout_clients": 1} | values
        built = build(tiny(partition={"name": "dirichlet"}, **values))
        federation = built.federation
        arrays = (*federation.inputs.values(), federation.sizes, federation.available)
        return [np.asarray(x) for x in arrays], built.key

    first, key = data(seed=0)
    fixed, other_key = data(seed=7, fixed_partition=True)
    own, _ = data(seed=7)
    for ours, theirs in zip(fixed, first, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert key != other_key
    assert own[0].shape != first[0].shape or not np.array_equal(own[0], first[0])


def test_the_natural_clients_must_leave_somebody_to_train():
    dataset = TINY["dataset"] | {"natural_clients": 5}
    values = {"dataset": dataset, "partition": {"name": "natural"}, "clients": 0}
    with pytest.raises(ValueError, match="holdout_clients: 5 of 5 clients"):
        build(tiny(**values, holdout_clients=5))
    with pytest.raises(ValueError, match="clients: 5 less holdout_clients: 4"):
        build(tiny(**values, holdout_clients=4))


def test_experiments_that_share_compile_nothing_anew():
    shared = Shared()
    first = build(tiny(method={"name": "fedavg"}, seed=0), shared=shared)
    second = build(tiny(method={"name": "fedavg"}, seed=1), shared=shared)
    alone = build(tiny(method={"name": "fedavg"}, seed=1))
    results = []
    for built in (first, second, alone):
        state = built.algorithm.init(built.key, built.federation)
        state, _ = built.algorithm.run(state, built.federation, np.int32(1))
        results.append(measure(built, state))
    assert results[1] == results[2] != results[0]
    assert second.algorithm.run._cache_size() == 1
    assert second.measures.compiled.views.whole._cache_size() == 1


SHARING = {
    # what changes -> whether data set, model, algorithm, evaluation stay the same
    "partition": ({"partition": {"name": "dirichlet"}}, True, True, True, True),
    "noise": ({"label_noise": 0.1}, True, True, True, True),
    "rounds": ({"rounds": 3}, True, True, True, True),
    "method": ({"method": {"name": "fedprox"}}, True, True, False, True),
    "projectors": ({"method": {"name": "fedcmi"}}, True, False, False, False),
    "own models": ({"method": {"name": "fedper"}}, True, True, False, False),
    "rate": ({"local": {"learning_rate": 0.1}}, True, True, False, True),
    "cohort": ({"clients_per_round": 1}, True, True, False, True),
    "data": ({"dataset": TINY["dataset"] | {"seed": 1}}, False, True, True, True),
    "features": ({"encoder": TINY["encoder"] | {"features": 3}}, True, *(False,) * 3),
}


@pytest.mark.parametrize("change", SHARING)
def test_experiments_share_what_depends_on_nothing_that_differs(change):
    shared, (values, *expected) = Shared(), SHARING[change]
    first, second = (
        build(tiny(**({"method": {"name": "fedavg"}} | v)), shared=shared)
        for v in ({}, values)
    )
    same = [
        first.dataset is second.dataset,
        first.model is second.model,
        first.algorithm.run is second.algorithm.run,
        first.measures.compiled is second.measures.compiled,
    ]
    assert same == expected


def test_own_objects_are_shared_with_themselves_only():
    shared, config = Shared(), tiny(method={"name": "fedavg"})
    own, other = (load_dataset(config.dataset, print) for _ in range(2))
    first, same, new = (
        build(config, shared=shared, parts=Parts(dataset=dataset))
        for dataset in (own, own, other)
    )
    assert first.algorithm.run is same.algorithm.run is not new.algorithm.run
    assert new.dataset is other


def test_a_falling_rate_is_that_of_its_rounds():
    shared, local = Shared(), {"local": {"learning_rate_min": 1e-3}}
    one, other = (build(tiny(**local, rounds=r), shared=shared) for r in (2, 3))
    assert one.algorithm.run is not other.algorithm.run
