"""Wrong values of every field of every configuration: one line that names the field."""

import dataclasses
import functools
import math
import typing

import pytest

from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.checks import check_config
from fedcmi_jax.experiment.sections import REGISTRIES, section

WRONG = [
    "three",
    "",
    True,
    None,
    [],
    ["a", 1, None],
    {"a": 1},
    2**31,
    -(2**63),
    10**400,
    1.5,
    math.nan,
    math.inf,
    "nan",
]
"""JSON values, of which a field takes some."""

SECTIONS = [
    ("config", ""),
    ("model", ""),
    ("local", ""),
    ("server", ""),
    *((kind, name) for kind, known in REGISTRIES.items() for name in known),
]


@functools.cache
def fields(kind, name):
    """Field -> its type."""
    inner = {f.name: f for f in dataclasses.fields(configs.Config)}
    made = (
        configs.Config
        if kind == "config"
        else section(kind, name)
        if name
        else type(inner[kind].default)
    )
    hints = typing.get_type_hints(made)
    names = (f.name for f in dataclasses.fields(made))
    return {n: hints[n] for n in names if n != "name" and hints[n] is not typing.Any}


def with_value(kind, name, field, value):
    """A configuration's values with that one."""
    values = {field: value} | ({"name": name} if name else {})
    return values if kind == "config" else {kind: values}


def refusal(values):
    """What a configuration is refused with; "" where it is accepted."""
    try:
        check_config(configs.from_dict(values))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "name"), SECTIONS)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(kind, name):
    refused = 0
    for field in fields(kind, name):
        for value in WRONG:
            message = refusal(with_value(kind, name, field, value))
            refused += bool(message)
            # Where two fields do not go together the message has both.
            if message:
                assert field.removesuffix("s") in message, (value, message)
            assert "\n" not in message
    assert refused >= 4 * len(fields(kind, name))


def test_the_corpus_is_large():
    count = sum(len(fields(*section)) * len(WRONG) for section in SECTIONS)
    assert count >= 400
